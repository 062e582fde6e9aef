"""What the comparisons of couplings share: settings, and runs that each leave a file, so that they can be resumed."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.configs.settings import require
from experiments.files import read_json, write_arrays, write_atomically


class Outcome(NamedTuple):
    """What a run leaves: ``NAME.json`` and ``NAME.npz``."""

    numbers: dict[str, float]
    arrays: dict[str, np.ndarray]
    """For the figure."""


@dataclass(frozen=True)
class Comparison(ABC):
    """How often, how long, where to. A comparison sets the defaults, and adds what it varies."""

    seeds: tuple[int, ...]
    """Seeds of the runs of each coupling."""
    steps: int
    """Training steps."""
    out: Path
    """Folder of the numbers, one file for each run."""
    page: Path | None = None
    """Folder of page and figure; default: that of the numbers."""

    def check(self) -> None:
        """Refuses settings that cannot work.

        Raises:
            ValueError: naming the flag.
        """
        self.require_some("seeds")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "integers >= 0")
        require(self.steps >= 1, "steps", self.steps, ">= 1")

    def require_some(self, name: str) -> None:
        """Refuses a setting that lists nothing, or something twice."""
        values = getattr(self, name)
        require(len(values) > 0 and len(set(values)) == len(values), name, values, "one or more, each once")

    @property
    def page_folder(self) -> Path:
        """Where page and figure go."""
        return self.page or self.out

    @abstractmethod
    def write(self) -> Path:
        """Does the runs that are missing, and writes page and figure; returns the path of the page.

        Raises:
            ValueError: for a folder that holds runs of other settings.
        """


class Run(NamedTuple):
    """A run that is wanted."""

    facts: Mapping[str, Any]
    """What its file must agree with, such as the number of steps."""
    make: Callable[[], Outcome]


def finish(out: Path, planned: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Numbers of every run by its name, from its files or made now.

    Args:
        out: folder of the files.
        planned: by name, in their order.

    Raises:
        ValueError: for a file that cannot be read, or of a run with other facts, before any run is made.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = {name: _numbers_of(out / f"{name}.json", run.facts) for name, run in planned.items()}
    numbers = {}
    with tqdm(planned.items(), desc="couplings", unit="run") as bar:
        for name, run in bar:
            bar.set_postfix_str(name)
            numbers[name] = kept[name] or _made(out / f"{name}.json", run)
    return numbers


def _numbers_of(file: Path, facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Those of a run that has ended; None where none has."""
    if not (file.exists() and file.with_suffix(".npz").exists()):
        return None
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}: remove it, and its run is made again") from error
    for name, value in facts.items():
        if found.get(name) != value:
            raise ValueError(
                f"{file} is of a run with {name} = {found.get(name)}, this one has {value}: name another folder "
                "by --out"
            )
    return found["numbers"]


def _made(file: Path, run: Run) -> dict[str, float]:
    outcome = run.make()
    # The numbers come last: where they are, the run has ended.
    write_arrays(file.with_suffix(".npz"), outcome.arrays)
    write_atomically(file, json.dumps({**run.facts, "numbers": outcome.numbers}, indent=2) + "\n")
    return outcome.numbers
