"""``python -m engines`` in a checkout: the command ``stream-engines``."""

from emostream.engines.commands.main import run

if __name__ == "__main__":  # processes that are spawned import this module too
    run()
