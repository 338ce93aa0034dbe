"""Graphs without weights: they name places in a file of torch's, from where ONNX Runtime reads the numbers.

Such a file is a ZIP archive of plain arrays, with an index that could hold code. The index is read as a list of
instructions, and never run.
"""

from __future__ import annotations

import argparse
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from emostream.files import sha256, write_atomically
from emostream.stream import models
from emostream.train.graphs.writer import Writer

_HEADER = 30  # bytes of a local file header in a ZIP archive, without name and extra field
Places = dict[str, tuple[int, int]]


def places(path: Path, prefixes: tuple[str, ...]) -> Places:
    """By the name of a weight that begins with one of ``prefixes``, the byte at which its float32 numbers begin and how
    many bytes there are."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {Path(entry.filename).name: entry for entry in archive.infolist()}
        index = archive.read(entries["data.pkl"])
        found, name = {}, ""
        for _, value, _ in pickletools.genops(index):
            if not isinstance(value, str):
                continue
            if value.startswith(prefixes):
                name = value
            elif value.isdigit() and name:
                entry = entries[value]
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise SystemExit(f"{path}: {value} is compressed")
                file.seek(entry.header_offset)
                header = file.read(_HEADER)
                at = entry.header_offset + _HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
                found[name] = (at, entry.file_size)
                name = ""
    return found


class FileWriter(Writer):
    """``prefix``: of the graph's names; ``weights``: where they are in the file called ``file``."""

    def __init__(self, prefix: str, file: str, weights: Places) -> None:
        super().__init__(prefix)
        self._file, self._weights = file, weights

    def weight(self, name: str, *shape: int) -> str:
        """A constant of the file."""
        at, length = self._weights[name]
        if length != 4 * int(np.prod(shape)):
            raise SystemExit(f"{name}: {length} bytes, not those of {shape}")
        return self._external(name, at, shape)

    def parts(self, name: str, order: Sequence[int], *shape: int) -> list[str]:
        """Constants of ``shape`` of which a weight consists, one after the other, in another order."""
        at, length = self._weights[name]
        size = 4 * int(np.prod(shape))
        if length != size * len(order):
            raise SystemExit(f"{name}: {length} bytes, not those of {len(order)} {shape}")
        return [self._external(f"{name}.{part}", at + part * size, shape) for part in order]

    def _external(self, name: str, at: int, shape: Sequence[int]) -> str:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._file), ("offset", at), ("length", 4 * int(np.prod(shape)))):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name


def write_graph(
    arguments: Sequence[str] | None,
    description: str | None,
    name: str,
    out: Path,
    build: Callable[[Path], onnx.ModelProto],
) -> int:
    """A tool's command line: write the graph that ``build`` makes for the file of the model called ``name``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    wanted = models.MODELS[name].sha256
    if sha256(options.file) != wanted:
        raise SystemExit(f"{options.file}: is not the network that the graph is for (SHA-256 {wanted})")
    write_atomically(out, build(options.file).SerializeToString())
    return 0
