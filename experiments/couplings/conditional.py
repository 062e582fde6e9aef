"""Conditional generation under each coupling: what plain optimal transport spoils, and what mends it.

python -m experiments.couplings conditional
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from experiments.configs.settings import require
from experiments.couplings.comparison import Comparison, Outcome, Run, finish
from experiments.couplings.conditional_figure import comparison_figure
from experiments.couplings.conditional_flow import ConditionalCoupling, Rate, run
from experiments.couplings.conditional_page import page
from experiments.couplings.conditional_tasks import TASKS, TaskName
from experiments.files import read_arrays, write_atomically
from experiments.plots import save


@dataclass(frozen=True)
class Conditional(Comparison):
    """Eight gaussians to a moon, or from a mode, and digits of a class: the drift is told the condition."""

    tasks: tuple[TaskName, ...] = ("moon", "mode", "digit")
    """Which conditions: the moon of the data; the mode of the source; the class of a handwritten digit."""
    couplings: tuple[ConditionalCoupling, ...] = ("independent", "exact", "respecting")
    """Couplings to compare, in the order of the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 12_000
    digit_steps: int = 4000
    """Training steps on digits, which have a larger network."""
    rate: Rate = "cosine"
    """Whether the learning rate falls to zero as a cosine, from 3e-3 in the plane and 1e-3 on digits, or stays at 1e-3:
    it then leaves the noise of the last batches in the flow, and couplings differ in this noise. Page and figure of a
    constant rate have its name in theirs."""
    out: Path = Path("runs/couplings/conditional")

    def check(self) -> None:
        """Refuses settings that cannot work."""
        self.require_some("tasks")
        self.require_some("couplings")
        super().check()
        require(self.digit_steps >= 1, "digit_steps", self.digit_steps, ">= 1")

    def steps_of(self, task: TaskName) -> int:
        """Training steps of a task."""
        return self.digit_steps if task == "digit" else self.steps

    def write(self) -> Path:
        """Does the runs that are missing, and writes page and figure; returns the path of the page."""
        names: dict[tuple[TaskName, ConditionalCoupling, int], str] = {
            (task, coupling, seed): f"{task}-{coupling}-seed{seed}"
            for task in self.tasks
            for seed in self.seeds
            for coupling in self.couplings
        }
        planned: dict[str, Run] = {}
        for (task, coupling, seed), name in names.items():
            steps = self.steps_of(task)
            planned[name] = Run(
                {"steps": steps, "rate": self.rate},
                functools.partial(_run, task, coupling, seed, steps, self.rate),
            )
        self.page_folder.mkdir(parents=True, exist_ok=True)  # before the runs, lest it cannot be
        found = finish(self.out, planned)
        numbers = {
            task: {
                coupling: {seed: found[names[task, coupling, seed]] for seed in self.seeds}
                for coupling in self.couplings
            }
            for task in self.tasks
        }
        last = self.seeds[-1]
        samples = {
            task: {
                coupling: read_arrays(self.out / f"{names[task, coupling, last]}.npz")["samples"]
                for coupling in self.couplings
            }
            | {"real": TASKS[task](last).real}
            for task in self.tasks
        }
        stem = "couplings_conditional" + ("" if self.rate == "cosine" else f"_{self.rate}")
        save(comparison_figure(samples), self.page_folder / f"{stem}.png")
        command = "python -m experiments.couplings conditional"
        for flag in ("tasks", "couplings", "seeds"):
            command += f" --{flag} {' '.join(map(str, getattr(self, flag)))}"
        command += f" --steps {self.steps} --digit-steps {self.digit_steps} --rate {self.rate}"
        file = self.page_folder / f"{stem}.md"
        write_atomically(
            file,
            page(
                numbers,
                command,
                {task: self.steps_of(task) for task in self.tasks},
                self.rate,
                f"{stem}.png",
            ),
        )
        return file


def _run(task: TaskName, coupling: ConditionalCoupling, seed: int, num_steps: int, rate: Rate) -> Outcome:
    return run(TASKS[task](seed), coupling, seed, num_steps, rate)
