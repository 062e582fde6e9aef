"""Gradual fine-tuning of a digits flow under a distribution shift.

    python -m experiments.train digits

Two to three minutes on two CPU cores. Expected, with the defaults: the gradual methods and plain fine-tuning end at
a W2 of 3.2 and an energy distance of 0.02 to 0.03 (floors 2.72 and -0.006). The energy distance of gradual-linear
falls along the whole run (Spearman -0.97; self-paced -0.78, plain -0.4), and the increments of its W2 have a
fourteenth of the variance of plain fine-tuning's. From scratch, at ten times the learning rate, W2 ends lower (3.06)
and the energy distance higher (0.07).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Shift = Literal["unseen-classes", "rotation", "inversion"]
MethodName = Literal["gradual-linear", "gradual-self-paced", "plain", "from-scratch"]
CouplingName = Literal["independent", "exact", "sinkhorn"]
PathName = Literal["linear", "trigonometric", "variance-preserving", "linear-noisy", "brownian-bridge"]


@dataclass(frozen=True)
class Digits:
    """Pretrain a flow on 8x8 digits, adapt it to shifted digits by several methods, and report.

    The base is kept and used again by the next run with the same settings of it. Results go to a fresh numbered
    folder runs/digits/NNN; open its report.html.
    """

    shift: Shift = "unseen-classes"
    """What changes between pretraining and fine-tuning. unseen-classes: digits 0-4 to 5-9; rotation, inversion:
    one half of all digits to the other half, turned by 90 degrees or with black and white exchanged."""
    num_target: int = 512
    """Number of images to fine-tune on, 1 to 512; 384 others are held out for evaluation."""
    methods: tuple[MethodName, ...] = ("gradual-linear", "gradual-self-paced", "plain", "from-scratch")
    """Methods to compare, in the order of the report."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fine-tuning runs; with several the table shows mean and spread."""
    coupling: CouplingName = "independent"
    """How noise and images of a batch are paired in fine-tuning."""
    path: PathName = "linear"
    """Probability path, of pretraining and fine-tuning."""
    steps: int = 2000
    """Steps of fine-tuning."""
    learning_rate: float = 1e-4
    """Learning rate (Adam) of fine-tuning."""
    batch_size: int = 128
    """Images per step."""
    start_weight: float = 0.05
    """Target weight w = 1 / (1 + temperature) with which cooling starts, above 0, below 1."""
    cooling_fraction: float = 0.8
    """Part of the steps by whose end the temperature is zero, in (0, 1]."""
    base_every: int = 1
    """Evaluate the frozen base on every k-th row of a batch; 1 is every row. Must divide the batch size."""
    base_steps: int = 3000
    """Steps of pretraining."""
    base_learning_rate: float = 1e-3
    """Peak learning rate (Adam, cosine decay) of pretraining; also the learning rate of from-scratch."""
    hidden: int = 256
    """Width of the drift network."""
    depth: int = 4
    """Residual blocks of the drift network."""
    eval_every: int = 50
    """Steps between two evaluations of the raw parameters on held-out images."""
    sampling_steps: int = 100
    """Euler steps of the evaluations."""
    parallel: Literal["single", "pmap"] = "single"
    """One device, or all local devices under pmap."""
    out: Path | None = None
    """Folder of the results; default a fresh numbered one under runs/digits."""
    resume: bool = False
    """Continue an interrupted run: the one in --out, or else the latest."""

    def check(self) -> None:
        """Refuses settings that cannot work, before anything is started.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        for name in ("num_target", "steps", "batch_size", "base_every", "base_steps", "hidden", "depth"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.num_target <= 512, "num_target", self.num_target, "at most 512")
        _require(len(self.methods) > 0, "methods", self.methods, "at least one method")
        _require(len(set(self.methods)) == len(self.methods), "methods", self.methods, "each method once")
        _require(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        _require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "each seed once")
        _require(min(self.seeds) >= 0, "seeds", self.seeds, "no negative seeds")
        for name in ("learning_rate", "base_learning_rate"):
            value = getattr(self, name)
            _require(0.0 < value < math.inf, name, value, "a finite number above 0")
        _require(0.0 < self.start_weight < 1.0, "start_weight", self.start_weight, "above 0 and below 1")
        _require(0.0 < self.cooling_fraction <= 1.0, "cooling_fraction", self.cooling_fraction, "in (0, 1]")
        _require(
            self.batch_size % self.base_every == 0, "base_every", self.base_every, "a divisor of batch_size"
        )
        _require(self.eval_every >= 1, "eval_every", self.eval_every, "at least 1")
        _require(
            self.steps % self.eval_every == 0,
            "eval_every",
            self.eval_every,
            f"a divisor of steps={self.steps}",
        )
        _require(self.sampling_steps >= 1, "sampling_steps", self.sampling_steps, "at least 1")

    @property
    def cooling_steps(self) -> int:
        """Steps after which the temperature is zero."""
        return max(1, round(self.cooling_fraction * self.steps))


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} is {value}; allowed is {allowed}")
