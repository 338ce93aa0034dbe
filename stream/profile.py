"""What a run learnt about a person, kept for the next run (``[fusion] profile``, ``stream-run --profile``).

A profile only holds numbers: for each stream and modality, the mean of the encoder's vectors at rest and the number of
utterances. It contains no pictures, sound or words; it is still personal, so only its owner can read the file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from emostream.engines.bundle import FACE, VOICE, Bundle
from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY, write_atomically
from emostream.stream.cores.adapt import Baseline, VoiceBaseline

log = logging.getLogger(__name__)

FORMAT = "emostream-profile/1"
_ENCODER = {"audio": VOICE, "video": FACE}
_MOST_BYTES = 10_000_000

_Finite = Annotated[float, Meta(gt=-1e6, lt=1e6)]


class Rest(msgspec.Struct, frozen=True):
    """Mean vector at rest, and of how many utterances; of a voice, by how much moving it has made how many answers
    surer, in sum."""

    mean: list[_Finite]
    weight: Annotated[float, Meta(gt=0, le=1e6)]
    tried: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    surer: _Finite = 0.0


class _File(msgspec.Struct):
    format: str
    networks: dict[str, str]  # by modality: SHA-256 of the encoder whose vectors these are
    streams: dict[str, dict[str, Rest]]


class Profile:
    """A profile file, as far as it applies to a bundle.

    Raises ConfigError if the file exists but is not a profile, or cannot be read.
    """

    def __init__(self, path: Path, bundle: Bundle) -> None:
        self._path = path
        files = bundle.manifest.files
        self._networks = {m: files[name].sha256 for m, name in _ENCODER.items() if name in files}
        self._dims = {"audio": bundle.manifest.audio.dim, "video": bundle.manifest.video.dim}
        self._streams = self._read()
        self._written: _File | None = None

    def restore(self, baselines: Mapping[str, Mapping[str, Baseline]]) -> None:
        """Set each stream's baselines, by modality, to what the profile contains."""
        for stream, by_modality in baselines.items():
            for m, baseline in by_modality.items():
                if (rest := self._streams.get(stream, {}).get(m)) is not None:
                    baseline.rest = (np.array(rest.mean), rest.weight)
                    if isinstance(baseline, VoiceBaseline):
                        baseline.tried, baseline.surer = rest.tried, rest.surer

    def save(self, baselines: Mapping[str, Mapping[str, Baseline]]) -> None:
        """Write the file if anything has changed; other streams stay as they are. Raises OSError."""
        for stream, by_modality in baselines.items():
            known = {m: _rest(baseline) for m, baseline in by_modality.items()}
            self._streams[stream] = {m: rest for m, rest in known.items() if rest is not None}
        content = _File(FORMAT, self._networks, {s: dict(rests) for s, rests in self._streams.items() if rests})
        if content != self._written:
            write_atomically(self._path, msgspec.json.encode(content) + b"\n", OWNER_ONLY)
            self._written = content

    def check_writable(self) -> None:
        """Raises ConfigError if the file's folder cannot take it."""
        try:
            probe = self._path.with_name(f"{self._path.name}.try")
            write_atomically(probe, b"", OWNER_ONLY)
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{self._path}: the profile cannot be written ({error.strerror})") from error

    def _read(self) -> dict[str, dict[str, Rest]]:
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                raise ConfigError(f"{self._path}: is no profile (larger than {_MOST_BYTES} bytes)")
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"{self._path}: the profile cannot be read ({error.strerror})") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self._path}: is no profile ({error})") from error
        if file.format != FORMAT:
            raise ConfigError(f"{self._path}: format is {file.format!r}, this version reads {FORMAT!r}")
        return {
            stream: {m: rest for m, rest in rests.items() if self._fits(file, stream, m, rest)}
            for stream, rests in file.streams.items()
        }

    def _fits(self, file: _File, stream: str, m: str, rest: Rest) -> bool:
        if m not in self._networks:
            return False
        if file.networks.get(m) != self._networks[m]:
            log.warning("%s: %s, %s: was learnt with another bundle's encoder; begins anew", self._path, stream, m)
            return False
        if len(rest.mean) != self._dims[m]:
            raise ConfigError(f"{self._path}: {stream}, {m}: has {len(rest.mean)} numbers, not {self._dims[m]}")
        return True


def _rest(baseline: Baseline) -> Rest | None:
    if baseline.rest is None or baseline.rest[1] < 1e-5:
        return None
    mean, weight = baseline.rest
    tried = {"tried": baseline.tried, "surer": baseline.surer} if isinstance(baseline, VoiceBaseline) else {}
    return Rest([round(float(x), 5) for x in mean], round(weight, 5), **{k: round(v, 5) for k, v in tried.items()})
