"""A node's process, from start to end.

Exit codes: 0 it came to its end; 3 it cannot run at all (the line on why is out); anything else: it crashed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

from engines.backend import BackendError
from engines.bundle import BundleError
from stream.bus import BusError
from stream.models import ModelError
from stream.nodes.shell import NodeSpec, Shell, Stopped
from stream.sources.items import SourceError

CANNOT_RUN = 3


def run_node(spec: NodeSpec) -> None:
    """A node process, from start to end: what multiprocessing starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the supervisor decides
    code = 0
    shell: Shell | None = None
    try:
        shell = Shell(spec)
        signal.signal(signal.SIGTERM, shell.stop)
        _main(spec.kind)(shell)
    except Stopped:
        pass
    except (SourceError, BusError, BundleError, BackendError, ModelError) as error:
        logging.error("%s", error)
        code = CANNOT_RUN
    except Exception:
        logging.error("crashed:\n%s", traceback.format_exc())
        code = 1
    finally:
        if shell is not None:
            shell.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that is blocked in a read must not keep the process


def _main(kind: str) -> Callable[[Shell], None]:
    """The main function of a node; each imports what it alone needs."""
    if kind == "capture":
        from stream.nodes.capture import main
    elif kind == "speech":
        from stream.nodes.listen import main
    else:
        from stream.nodes.fuse import main
    return main
