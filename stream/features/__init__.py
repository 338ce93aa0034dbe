"""Feature extraction, one implementation for live use and for training.

Streaming features are objects with ``push(...) -> what became ready``, ``flush()`` and ``reset()``. The output does
not depend on how the input is chunked.
"""
