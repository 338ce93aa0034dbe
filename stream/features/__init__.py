"""Feature extraction, one implementation for live use and for training.

Streaming features are objects with ``push(...) -> what became ready``, ``flush()`` and ``reset()``. However the
input is cut into chunks, the output is that of the whole.
"""
