"""Benchmarks of the live pipeline: each a command that writes JSON, a Markdown table and a picture."""
