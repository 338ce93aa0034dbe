"""The live pipeline: sources, producers, fusion, and the bus that joins them. Imports no torch."""
