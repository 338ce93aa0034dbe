"""What an engine is built for and how."""

from __future__ import annotations

from dataclasses import dataclass

from emostream.errors import ConfigError

RUNTIMES = ("tensorrt", "tensorrt_rtx")  # in order of preference
PRECISIONS = ("fp32", "fp16", "bf16")
AHEAD_OF_TIME = "ahead-of-time"


@dataclass(frozen=True)
class Options:
    """How to build. ``compute``: capabilities, such as SM86, to build for ahead of time (TensorRT-RTX only); empty:
    build for the GPU of this machine. ``max_batch``: the largest batch of the fusion graph. Raises ConfigError if they
    do not fit together."""

    runtime: str = "tensorrt"
    precision: str = "fp32"
    compute: tuple[str, ...] = ()
    max_batch: int = 8

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"runtime {self.runtime!r} is unknown; choose one of: {', '.join(RUNTIMES)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r} is unknown; choose one of: {', '.join(PRECISIONS)}")
        if self.compute and self.runtime != "tensorrt_rtx":
            raise ConfigError(
                "TensorRT builds only for the GPU of the machine it runs on; leave out --compute there, or build ahead "
                "of time with --runtime tensorrt_rtx"
            )
        if self.max_batch < 1:
            raise ConfigError(f"--max-batch is {self.max_batch}; it must be at least 1")


@dataclass(frozen=True)
class Device:
    """The GPU that an engine is for. ``compute``: its compute capability, such as SM86. ``driver``: its version. For an
    engine built ahead of time: AHEAD_OF_TIME, all capabilities joined by "+", and "-"."""

    name: str
    compute: str
    driver: str


def ahead_of_time(compute: tuple[str, ...]) -> Device:
    """The device of an engine built for several compute capabilities without their GPUs."""
    return Device(AHEAD_OF_TIME, "+".join(compute), "-")
