"""Flows from eight gaussians to two moons, trained with one coupling and another: how long, how straight, how good.

    python -m experiments.couplings scratch

About half an hour on two CPU cores with the defaults.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.configs.settings import CouplingName
from experiments.couplings.comparison import Comparison, Outcome, Run, finish
from experiments.couplings.scratch_flow import measured, trained
from experiments.couplings.scratch_page import page
from experiments.data.eight_to_moons import moons
from experiments.files import read_arrays, write_atomically
from experiments.planar_figures import path_panels
from experiments.plots import save


@dataclass(frozen=True)
class Scratch(Comparison):
    """Eight gaussians to moons, without conditions, trained from the first step on."""

    couplings: tuple[CouplingName, ...] = ("independent", "exact")
    """Couplings to compare, in the order of the table."""
    seeds: tuple[int, ...] = tuple(range(10))
    steps: int = 20_000
    out: Path = Path("runs/couplings/scratch")

    def check(self) -> None:
        """Refuses settings that cannot work."""
        self.require_some("couplings")
        super().check()

    def write(self) -> Path:
        """Does the runs that are missing, and writes couplings.md and couplings.png; returns the path of the page."""
        names = {
            (coupling, seed): f"{coupling}-seed{seed}" for seed in self.seeds for coupling in self.couplings
        }
        self.page_folder.mkdir(parents=True, exist_ok=True)  # before the runs, lest it cannot be
        found = finish(
            self.out,
            {
                name: Run({"steps": self.steps}, functools.partial(_run, *run, self.steps))
                for run, name in names.items()
            },
        )
        numbers = {
            coupling: {seed: found[names[coupling, seed]] for seed in self.seeds}
            for coupling in self.couplings
        }
        first = self.seeds[0]
        paths = {
            coupling: read_arrays(self.out / f"{names[coupling, first]}.npz")["paths"]
            for coupling in self.couplings
        }
        figure = path_panels(paths, moons(np.random.default_rng(0), 1000), self.couplings)
        assert figure is not None, "there is a coupling"
        save(figure, self.page_folder / "couplings.png")
        command = f"python -m experiments.couplings scratch --couplings {' '.join(self.couplings)}"
        command += f" --seeds {' '.join(map(str, self.seeds))} --steps {self.steps}"
        file = self.page_folder / "couplings.md"
        write_atomically(file, page(numbers, command, self.steps, "couplings.png"))
        return file


def _run(coupling: CouplingName, seed: int, num_steps: int) -> Outcome:
    return measured(*trained(coupling, seed, num_steps), seed)
