"""``python -m train`` in a checkout: the command ``stream-train``."""

from emostream.train.commands.main import run

if __name__ == "__main__":  # processes that are spawned import this module too
    run()
