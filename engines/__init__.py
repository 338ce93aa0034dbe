"""Trained models as something that runs: bundles, and the backends that run their graphs."""
