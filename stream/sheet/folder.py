"""Where contact sheets are written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY, write_atomically
from emostream.stream.export import file_names, need
from emostream.stream.sheet.collect import Sheet


class Sheets:
    """A folder of contact sheets: ``NAME.png`` for each of ``recordings``, and ``NAME.page2.png``, … for long ones.

    Raises ConfigError if the folder cannot be written, or matplotlib is missing."""

    def __init__(self, folder: Path, recordings: Sequence[Path]) -> None:
        need("matplotlib", "a contact sheet")
        self._folder, self._names = folder, file_names(recordings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error

    def path(self, recording: Path, page: int = 1) -> Path:
        """The path of a page of a recording's sheet."""
        return self._folder / f"{self._names[recording]}{f'.page{page}' if page > 1 else ''}.png"

    def write(self, recording: Path, sheet: Sheet) -> None:
        """Draw a sheet, replacing an existing one. The first page is written last: if it exists, all pages do.

        Raises ConfigError if it cannot be written."""
        from emostream.stream.sheet.drawing import draw

        pages = draw(sheet)
        try:
            for page in range(len(pages), 0, -1):
                write_atomically(self.path(recording, page), pages[page - 1], OWNER_ONLY)
            page = len(pages) + 1
            while (old := self.path(recording, page)).exists():  # left over from a longer sheet
                old.unlink()
                page += 1
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be written ({error.strerror})") from error
