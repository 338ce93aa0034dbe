"""The live page: what a run hears, sees and says, in a browser on this machine."""
