"""What an engine is tied to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """``compute``: the compute capability, such as SM86. ``driver``: its version."""

    name: str
    compute: str
    driver: str
