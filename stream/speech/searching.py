"""What recognisers have in common that search while they listen."""

from __future__ import annotations


class Searching:
    """A recogniser that searches while it listens, so that little is left to do at the end."""

    def expect_end(self, silence_s: float) -> None:
        """Nothing to begin with."""

    def ready(self) -> bool:
        return True
