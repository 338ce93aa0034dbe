"""Archives from elsewhere: damaged, encrypted, with false sizes, and made to fill the disk."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.errors import ModelError
from emostream.stream.archives import unpack_zip


def packed(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data, compress_type=method)
    return out.getvalue()


MODEL = packed(("voice/am/final.mdl", bytes(range(256)) * 8), ("voice/conf/mfcc.conf", b"--rate=16000"))
_METHOD, _FLAGS, _SIZE = 10, 8, 24  # offsets in an entry of the central directory, past which the local one begins


def with_field(data: bytes, offset: int, form: str, value: int) -> bytes:
    """The first entry's field changed in the central directory, which zipfile believes."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


def unpacked(folder, data: bytes, **limits: int):
    (folder / "archive.zip").write_bytes(data)
    target = folder / "unpacked"
    unpack_zip(folder / "archive.zip", target, **limits)
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_is_namelesswithout_its_top_folder(tmp_path, method):
    data = packed(("voice/", b""), ("voice/am/final.mdl", b"am" * 999), ("README", b"not in a folder"), method=method)
    assert unpacked(tmp_path, data, max_bytes=1998, max_entries=3) == ["am/final.mdl"]
    assert (tmp_path / "unpacked/am/final.mdl").read_bytes() == b"am" * 999


ZEROS = packed(("voice/a", bytes(4 << 20)), ("voice/b", bytes(4 << 20)))
BAD = {
    "too large": (ZEROS, "larger, unpacked"),
    "too large, and says that it has 10 bytes": (with_field(ZEROS, _SIZE, "<I", 10), "larger, unpacked|or damaged"),
    "too many": (packed(*((f"voice/{i}", b"") for i in range(101))), "101 files, more than 100"),
    "encrypted": (with_field(MODEL, _FLAGS, "<H", 1), "or damaged .*(encrypted|password)"),
    "an unknown method": (with_field(MODEL, _METHOD, "<H", 99), "or damaged"),
    "cut off": (MODEL[:-30], "or damaged"),
    "text": (b"<html>please log in</html>", "or damaged"),
    "nothing": (b"", "or damaged"),
    "a wrong sum": (MODEL.replace(struct.pack("<I", zipfile.crc32(b"--rate=16000")), b"\1\2\3\4"), "or damaged"),
    "a link": (packed((link("voice/am"), b"/etc"), ("voice/am/passwd", b"evil")), "a link: 'voice/am'"),
    "a name that leads out": (packed(("voice/../../evil", b"evil")), "unsafe name"),
    "a name from the root": (packed(("/voice/evil", b"evil")), "unsafe name"),
    "a name of Windows": (packed(("voice/..\\..\\evil", b"evil")), "unsafe name"),
    "a file that is a folder too": (packed(("voice/a", b"x"), ("voice/a/b", b"y")), "cannot be unpacked"),
    "a name twice": (packed(("voice/a", b"x"), ("voice//a", b"y")), "cannot be unpacked"),
    "a name of 400 letters": (packed(("voice/" + "a" * 400, b"x")), "cannot be unpacked"),
}


@pytest.mark.parametrize(("data", "why"), BAD.values(), ids=BAD)
def test_an_archive_that_is_refused(tmp_path, data, why):
    with pytest.raises(ModelError, match=why) as refused:
        unpacked(tmp_path, data, max_bytes=6 << 20, max_entries=100)
    assert len(str(refused.value).splitlines()) == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("unpacked/**/*") if path.is_file()) <= 6 << 20
    assert not [path for path in tmp_path.rglob("evil*") if tmp_path / "unpacked" not in path.parents]


def test_an_entry_without_a_name_is_passed_over(tmp_path):
    at = MODEL.index(b"PK\x01\x02") + 28
    nameless = with_field(MODEL, 28, "<H", 0)
    assert nameless[at : at + 2] == b"\0\0"
    with contextlib.suppress(ModelError):
        unpacked(tmp_path, nameless)


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), put=st.binary(min_size=1, max_size=8))
def test_any_damage_is_an_error_or_does_not_matter(tmp_path_factory, place, put):
    at = int(place * len(MODEL))
    with contextlib.suppress(ModelError):
        unpacked(tmp_path_factory.mktemp("damaged"), MODEL[:at] + put + MODEL[at + len(put) :])
