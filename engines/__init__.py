"""Bundles of trained networks, and the backends that run them."""
