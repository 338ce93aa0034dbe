"""The commands of ``stream-train``."""
