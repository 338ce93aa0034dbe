"""A live run inside the caller's program."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

from emostream.errors import RunError
from emostream.stream.config import Config, as_config
from emostream.stream.emotion import Emotion
from emostream.stream.messages import Health
from emostream.stream.notify import Notifier
from emostream.stream.status import Status
from emostream.stream.summary import Summary
from emostream.stream.supervisor import Supervisor


def run(
    config: Config | str | Path,
    *,
    on_emotion: Callable[[Emotion], None] = lambda emotion: None,
    on_health: Callable[[Health], None] = lambda health: None,
    on_log: Callable[[str, str, str], None] = lambda node, level, text: None,
    on_status: Callable[[Status], None] = lambda status: None,
    stop: threading.Event | None = None,
    notifier: Notifier | None = None,
) -> Summary:
    """Run the pipeline until every stream has ended or ``stop`` is set, and return what it did.

    ``config``: as ``load_config`` returns it, or the path of such a file. The call blocks; the callbacks run in the
    calling thread and should return soon. ``on_emotion`` gets labels and running estimates (``kind``: "utterance" or
    "window"), ``on_health`` each node's heartbeat once a second, ``on_log`` the node, level and text of each line for
    the user, ``on_status`` once a second the state of all streams and nodes and what was lost. ``stop`` may be set by a
    callback or another thread; the last labels still arrive, within three seconds. ``notifier`` tells systemd how the
    run is going; ``stream-run`` uses one.

    The nodes are processes that import the caller's main module, so a script calls this below
    ``if __name__ == "__main__":``. Raises RunError if no source can be opened or decoded, a node cannot run, or the run
    cannot go on; BundleError, BusError, ConfigError, ModelError or SourceError for what is found before they start.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # multiprocessing's own check
        raise RunError('a script calls emostream.run below `if __name__ == "__main__":`, since the nodes import it')
    config = as_config(config)
    summary = Summary()

    def take_emotion(emotion: Emotion) -> None:
        summary.add(emotion)
        on_emotion(emotion)

    supervisor = Supervisor(config, take_emotion, on_health, on_log, on_status, stop or threading.Event(), notifier)
    try:
        supervisor.run()
    finally:
        summary.status = supervisor.status(over=True)
    if reasons := supervisor.unopened:
        raise RunError("no source could be used: " + "; ".join(reasons))
    return summary
