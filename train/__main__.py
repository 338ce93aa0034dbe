"""``python -m train`` in a checkout: the command ``stream-train``."""

from emostream.commands import stream_train

if __name__ == "__main__":  # processes that are spawned import this module too
    stream_train()
