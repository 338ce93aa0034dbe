"""Cross-validated comparison of models."""
