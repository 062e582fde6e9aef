"""Where the time of a run goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

Part = Literal["data", "steps", "evaluation", "checkpoints"]

PARTS = {
    "data": "data and coupling",
    "steps": "steps",
    "start": "first chunk, with compilation",
    "evaluation": "evaluation",
    "checkpoints": "checkpoints",
    "other": "other",
}
"""What the time is divided into, and how it is called."""


class Clock:
    """The time of one method and seed, over all sessions that led to its last checkpoint.

    Two things are read off it: the time of a training step (with the wait for its batch, without the first chunk of a
    session, which compiles), and the shares of all the time.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        steps: int = 0,
        total: float = 0.0,
        parts: Mapping[str, float] | None = None,
    ):
        self._seconds, self._steps = seconds, steps
        self._before, self._started = total, time.perf_counter()
        self._parts = dict.fromkeys(PARTS, 0.0) | dict({} if parts is None else parts)
        self._chunk: dict[str, float] = {}
        self._warm = False

    @contextmanager
    def timing(self, part: Part) -> Iterator[None]:
        """Counts what happens inside as time of a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            if part in ("data", "steps"):
                self._chunk[part] = self._chunk.get(part, 0.0) + seconds
            else:
                self._parts[part] += seconds

    def add_chunk(self, steps: int) -> None:
        """Counts the data and steps since the last call as a chunk of so many steps."""
        seconds = sum(self._chunk.values())
        if self._warm:
            self._seconds, self._steps = self._seconds + seconds, self._steps + steps
            for part, spent in self._chunk.items():
                self._parts[part] += spent
        else:
            self._parts["start"] += seconds
        self._chunk, self._warm = {}, True

    def reading(self) -> dict[str, Any]:
        """Seconds of training and the steps that they are of; all seconds, and those of each part."""
        total = self._before + time.perf_counter() - self._started
        parts = {part: round(spent, 3) for part, spent in self._parts.items() if part != "other"}
        parts["other"] = round(max(0.0, total - sum(parts.values())), 3)
        return {"seconds": self._seconds, "steps": self._steps, "total": round(total, 3), "parts": parts}


def budget(reading: Mapping[str, Any]) -> str:
    """The shares of a reading in words."""
    total = max(reading["total"], 1e-9)
    shares = [f"{PARTS[part]} {100 * spent / total:.0f} %" for part, spent in reading["parts"].items()]
    each = f"; {1e3 * reading['seconds'] / reading['steps']:.3g} ms a step" if reading["steps"] else ""
    return f"{reading['total']:.1f} s: {', '.join(shares)}{each}"
