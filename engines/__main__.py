"""``python -m engines`` in a checkout: the command ``stream-engines``."""

from emostream.commands import stream_engines

if __name__ == "__main__":  # processes that are spawned import this module too
    stream_engines()
