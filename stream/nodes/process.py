"""A node's process, from start to end.

Exit codes: 0: it came to its end; 3: it cannot run at all (its log line says why); any other: it crashed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

from emostream.errors import EmostreamError
from emostream.stream.nodes.runtime import NodeRuntime, NodeSpec, Stopped

CANNOT_RUN = 3


def run_node(spec: NodeSpec) -> None:
    """A node process from start to end; the target that multiprocessing starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the supervisor decides
    code = 0
    runtime: NodeRuntime | None = None
    try:
        runtime = NodeRuntime(spec)
        signal.signal(signal.SIGTERM, runtime.stop)
        _main(spec.kind)(runtime)
    except Stopped:
        pass
    except EmostreamError as error:
        logging.error("%s", error)
        code = CANNOT_RUN
    except Exception:
        logging.error("crashed:\n%s", traceback.format_exc())
        code = 1
    finally:
        if runtime is not None:
            runtime.close()
    for output in (sys.stdout, sys.stderr):
        if output is not None:  # of a program without a terminal
            output.flush()
    os._exit(code)  # without waiting for a thread that is blocked in a read


def _main(kind: str) -> Callable[[NodeRuntime], None]:
    """The main function of a kind of node, imported by the node that runs it alone."""
    if kind == "capture":
        from emostream.stream.nodes.capture import main
    elif kind == "speech":
        from emostream.stream.nodes.speech import main
    else:
        from emostream.stream.nodes.fusion import main
    return main
