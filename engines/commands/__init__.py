"""The commands of ``stream-engines``."""
