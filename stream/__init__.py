"""The live pipeline: sources, producers, fusion, and the bus that connects them. Does not import torch."""
