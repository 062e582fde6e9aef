"""Sessions of one training run, each a process of its own that is left alone, killed, or asked to end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.loop.preemption import EXIT_STATUS
from experiments.soak.comparison import rows_of

ROOT = Path(__file__).parents[2]
LONGEST = 900.0
"""Seconds after which a session is taken to hang."""


class Failed(Exception):
    """A session that did not end as it should; the message has the end of what it printed."""


class Interruption(NamedTuple):
    """What is to be done to a session, and when."""

    signal: signal.Signals
    devices: int
    row: int | None
    """Rows of the log after which it comes; None: while the session starts."""
    delay: float
    """Seconds after that, or after the start."""


class Outcome(NamedTuple):
    """What was done to a session."""

    interruption: Interruption
    status: int
    """Exit status; minus the number of a signal that ended the process."""
    rows_before: int
    rows_at: int
    """Rows of the log when it began, and when it had ended."""
    began: str
    """Where it continued, in its own words; empty where it was ended before that."""


def plan(
    rng: random.Random, num_kills: int, num_terms: int, devices: Sequence[int], first_row: int, last_row: int
) -> list[Interruption]:
    """Interruptions in a random order: one in six while a session starts, the others spread over the rows of the log.

    Args:
        rng: of the random moments.
        num_kills: SIGKILLs.
        num_terms: SIGTERMs.
        devices: numbers of devices to choose from.
        first_row: earliest row of the log after which a session is interrupted.
        last_row: latest.
    """
    signals = [signal.SIGKILL] * num_kills + [signal.SIGTERM] * num_terms
    rng.shuffle(signals)
    rows = iter(sorted(rng.randint(first_row, last_row) for _ in signals))
    planned = []
    for number in signals:
        row = next(rows)
        if number == signal.SIGKILL and rng.random() < 1 / 6:
            planned.append(Interruption(number, rng.choice(devices), None, rng.uniform(0.2, 6.0)))
        else:
            planned.append(Interruption(number, rng.choice(devices), row, rng.uniform(0.0, 0.3)))
    return planned


def environment(devices: int) -> dict[str, str]:
    """Of a session on so many fake CPU devices."""
    changed = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",  # what was printed before a kill is wanted
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    if devices > 1:
        changed["NPROC"] = str(4 * devices)  # with fewer threads fake devices wait for each other for ever
    return os.environ | changed


def finish(folder: Path, arguments: Sequence[str], devices: int) -> str:
    """What a session prints that is left alone until it ends.

    Raises:
        Failed: if its status is not zero.
    """
    process = _start(folder, arguments, devices)
    output, _ = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise Failed(f"a session on {devices} devices ended with {process.returncode}:\n{output[-3000:]}")
    return output


def interrupt(folder: Path, arguments: Sequence[str], interruption: Interruption) -> Outcome:
    """Runs a session until its interruption.

    Raises:
        Failed: if it ended otherwise than by the signal; a session that has not come to its handler of SIGTERM may end
            by the signal itself.
    """
    log = folder / "run" / "metrics.jsonl"
    before = len(rows_of(log))
    process = _start(folder, arguments, interruption.devices)
    started = time.monotonic()
    if interruption.row is not None:
        # Strictly further than any session before: else the moment would have passed before this one began.
        wanted = max(interruption.row, before + 1)
        while len(rows_of(log)) < wanted and process.poll() is None:
            time.sleep(0.005)
            if time.monotonic() - started > LONGEST:
                process.kill()
                raise Failed(f"no row {wanted} of {log} within {LONGEST:.0f} s")
    time.sleep(interruption.delay)
    process.send_signal(interruption.signal)
    output, _ = process.communicate(timeout=LONGEST)
    is_term = interruption.signal == signal.SIGTERM
    if process.returncode not in ((EXIT_STATUS, -signal.SIGTERM) if is_term else (-signal.SIGKILL,)):
        raise Failed(
            f"a session on {interruption.devices} devices that was sent {interruption.signal.name} ended with "
            f"{process.returncode}:\n{output[-3000:]}"
        )
    began = [line for line in output.splitlines() if "continues at step" in line]
    return Outcome(interruption, process.returncode, before, len(rows_of(log)), began[-1] if began else "")


def fresh_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A table of what was done."""
    lines = ["| # | signal | devices | rows before | rows after | exit status | began |", "|---" * 7 + "|"]
    for number, outcome in enumerate(outcomes, start=1):
        of = outcome.interruption
        cells = (
            number,
            of.signal.name + (" (while starting)" if of.row is None else ""),
            of.devices,
            outcome.rows_before,
            outcome.rows_at,
            outcome.status,
            outcome.began or "-",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _start(folder: Path, arguments: Sequence[str], devices: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments, "--out", "run"],
        cwd=folder,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
