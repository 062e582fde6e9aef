"""SIGTERM, by which schedulers announce that a run is to end: it is noted, and the loop stops where nothing is lost.

`EXIT_STATUS` tells a script that the same command with ``--resume`` goes on (75 is ``EX_TEMPFAIL`` of sysexits.h, "try
again later"). A second signal ends the process at once, as if it had never been handled: also in the middle of a
compiled program, which Python could not interrupt.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

EXIT_STATUS = 75

_noted = threading.Event()


class Preempted(Exception):
    """A run that was asked to end, and has; the message says where it continues."""


@contextmanager
def watching() -> Iterator[None]:
    """Notes the first SIGTERM inside, and lets the second one end the process."""

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _noted.set()
        # Not print: the signal may have come in the middle of one.
        os.write(
            2,  # standard error
            b"\nSIGTERM: stops after the current chunk and evaluation; another one ends it now\n",
        )

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _noted.clear()


def requested() -> bool:
    """Whether a SIGTERM has come, to any process of the program; all of them have to ask."""
    if jax.process_count() == 1:
        return _noted.is_set()
    return bool(np.any(multihost_utils.process_allgather(np.asarray(_noted.is_set()))))
