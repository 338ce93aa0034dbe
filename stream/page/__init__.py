"""The live page: shows what a run hears, sees and labels, in a browser."""
