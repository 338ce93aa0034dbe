"""Optimisation profiles: the input shapes for which an engine is compiled."""

from __future__ import annotations

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""By input: the smallest, the typical and the largest shape."""
