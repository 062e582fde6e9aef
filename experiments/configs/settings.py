"""What experiments can be told: methods, seeds, steps, rates, evaluation, devices, folder."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from experiments.data.shifted import ShiftedData
from experiments.log_sinks import LogName, check_installed

MethodName = Literal[
    "gradual-linear",
    "gradual-self-paced",
    "plain",
    "from-scratch",
    "gradual-fast",
    "gradual-cosine",
    "gradual-temperature",
    "gradual-constant",
    "plain-warmup",
    "plain-geometric",
    "l2-sp",
    "prior-preservation",
    "distillation",
    "diff-tuning",
    "interpolated",
]
CouplingName = Literal["independent", "exact", "sinkhorn", "one-to-one", "unbalanced"]
"""Couplings of the two ends alone; one-to-one is sinkhorn without repetition."""
FineTuningCouplingName = Literal[CouplingName, "base-exact", "semi-discrete"]
"""base-exact: exact between the base's samples and the data, for the noise that the samples come from. semi-discrete:
data are chosen for the noise out of all data of fine-tuning."""
PathName = Literal["linear", "trigonometric", "variance-preserving", "linear-noisy", "brownian-bridge"]

REPLAYING: frozenset[MethodName] = frozenset({"prior-preservation", "diff-tuning"})
"""The methods whose batches hold replayed samples of the base."""


@dataclass(frozen=True)
class Controls:
    """Settings of the methods that gradual fine-tuning is compared with."""

    constant_weight: float = 0.5
    """Target weight of gradual-constant, which never cools."""
    l2_sp: float = 0.1
    """Strength of the L2 penalty on the distance from the base's parameters. At 0.1 the penalty is a small part of the
    loss on digits, and training hardly differs from plain; the study has other strengths."""
    replay_weight: float = 1.0
    """Weight of the replayed base samples in prior-preservation."""
    diff_tuning_weight: float = 0.1
    """Weight of the replayed base samples in diff-tuning."""
    replay_every: int = 4
    """Every k-th row of a batch is a replayed base sample, in prior-preservation and diff-tuning. Must divide the rows
    of a batch on each device."""
    num_replay: int = 512
    """Number of base samples that are replayed."""
    distillation_weight: float = 0.5
    """Share of the squared distance to the base, on the base's own paths, in distillation."""
    rollout_steps: int = 8
    """Euler steps of the base's paths in distillation."""
    interpolation: float = 0.7
    """Weight of the fine-tuned parameters against the base's in interpolated."""


OF_A_SESSION = (
    "out",
    "resume",
    "parallel",
    "fsdp",
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
    "checkpoint_every",
    "keep_every",
    "skip_non_finite",
    "profile",
    "log",
)
"""Settings that may change when a run is continued; on other devices it stays the same up to rounding."""


@dataclass(frozen=True)
class RunSettings(ABC):
    """What every run can be told, whatever it fine-tunes for."""

    experiment: ClassVar[str]
    """Name of the experiment, as on the command line."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of the fine-tuning runs; with several the table shows mean and spread."""
    path: PathName = "linear"
    """Probability path, of pretraining and fine-tuning."""
    steps: int = 2000
    """Steps of fine-tuning."""
    learning_rate: float = 1e-4
    """Learning rate (Adam) of fine-tuning."""
    batch_size: int = 128
    """Rows per step."""
    base_steps: int = 3000
    """Steps of pretraining."""
    base_learning_rate: float = 1e-3
    """Peak learning rate (Adam, cosine decay) of pretraining; also the learning rate of from-scratch."""
    hidden: int = 256
    """Width of the drift network."""
    depth: int = 4
    """Residual blocks of the drift network."""
    eval_every: int = 50
    """Steps between two evaluations of the raw parameters on held-out data."""
    sampling_steps: int = 100
    """Euler steps of the evaluations."""
    log_every: int | None = None
    """Steps whose means are one row of the log, a divisor of eval_every, which is the default."""
    out: Path | None = None
    """Folder of the results; default a fresh numbered one under runs/."""
    resume: bool = False
    """Continue an interrupted run: the one in --out, or else the latest. Until here, settings must be those it was
    started with; the following may change."""
    parallel: Literal["single", "pmap", "sharded"] = "single"
    """One device, or all devices of all processes, over which the rows of a batch are spread evenly: under pmap each
    has a copy of the parameters, sharded can split these, too."""
    fsdp: int = 1
    """Devices over which each copy of parameters and optimiser state is split, with --parallel sharded; a divisor of
    the number of devices."""
    distributed: bool = False
    """Join the other processes of the run, which SLURM, Open MPI, Kubernetes or Cloud TPU started."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens, where nothing in the environment says it; with the two flags below."""
    num_processes: int | None = None
    """Number of processes of the run."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, a multiple of eval_every. By default one every tenth evaluation, or so many that
    there are four in a run."""
    keep_every: int | None = None
    """Keep the checkpoints of multiples of this step, a multiple of checkpoint_every; besides the newest two and the
    best."""
    skip_non_finite: int = 0
    """Batches that may be left out in the run of a method and seed because loss or gradient are not finite; each is
    logged. The next one stops the run."""
    profile: tuple[int, int] | None = None
    """Steps FIRST END of the first method and seed, of which a trace for TensorBoard and Perfetto is written to
    RUN/profile; rounded outwards to evaluations. The first steps of a session compile."""
    log: tuple[LogName, ...] = ()
    """Where the log goes besides metrics.jsonl: tensorboard (RUN/tensorboard), wandb."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the report says of the data, as entries of config.json."""

    def check(self) -> None:
        """Refuses settings that cannot work, before anything is started.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        for name in ("steps", "batch_size", "base_steps", "hidden", "depth", "eval_every", "sampling_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "each seed once")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "no negative seeds")
        for name in ("learning_rate", "base_learning_rate"):
            value = getattr(self, name)
            require(0.0 < value < math.inf, name, value, "a finite number above 0")
        divides = self.steps % self.eval_every == 0
        require(divides, "eval_every", self.eval_every, f"a divisor of steps={self.steps}")
        only = "at least 1" if self.parallel == "sharded" else "1, unless --parallel is sharded"
        require(self.fsdp == 1 or (self.parallel == "sharded" and self.fsdp > 1), "fsdp", self.fsdp, only)
        every = self.eval_every if self.log_every is None else self.log_every
        divides = every >= 1 and self.eval_every % every == 0
        require(divides, "log_every", self.log_every, f"a divisor of eval_every={self.eval_every}")
        self._check_session()

    def _check_session(self) -> None:
        every, kept = self.checkpoint_every, self.keep_every
        if every is not None:
            fits = every >= 1 and every % self.eval_every == 0
            require(fits, "checkpoint_every", every, f"a multiple of eval_every={self.eval_every}, above 0")
        if kept is not None:
            fits = every is not None and kept >= 1 and kept % every == 0
            require(fits, "keep_every", kept, f"a multiple of --checkpoint-every (which is {every}), above 0")
        require(self.skip_non_finite >= 0, "skip_non_finite", self.skip_non_finite, "at least 0")
        if self.profile is not None:
            first, end = self.profile
            allowed = f"two steps FIRST < END, from 0 to {self.steps}"
            require(0 <= first < end <= self.steps, "profile", f"{first} {end}", allowed)
        require(len(set(self.log)) == len(self.log), "log", self.log, "each once")
        check_installed(self.log)

    def check_devices(self, num_devices: int) -> None:
        """Refuses settings whose batches cannot be spread over so many devices.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        if self.batch_size % num_devices:
            raise ValueError(
                f"--batch-size is {self.batch_size}; with {num_devices} devices it must be a multiple of {num_devices}"
            )

    def check_memoryless(self) -> None:
        """Refuses a path without a memoryless process, for methods that need one.

        Raises:
            ValueError: naming those that have one.
        """
        affine = self.path in ("linear", "trigonometric")
        require(affine, "path", self.path, "linear or trigonometric, which have a memoryless process")


@dataclass(frozen=True)
class Settings(RunSettings):
    """Settings shared by the experiments that adapt a flow to new data."""

    methods: tuple[str, ...] = ()
    """Methods to compare, in the order of the report."""
    coupling: FineTuningCouplingName = "independent"
    """How noise and data of a batch are paired in fine-tuning. base-exact pairs the data with the base's own samples,
    at the least total squared distance, and takes the noise that they come from. semi-discrete fits potentials to all
    data of fine-tuning first, which are kept in RUN/coupling."""
    coupled_batches: int = 1
    """Batches whose rows are coupled at once: the more, the nearer a coupling is to optimal transport between the laws,
    and the more it costs. The next pairing is computed while the device trains."""
    start_weight: float = 0.05
    """Target weight w = 1 / (1 + temperature) with which cooling starts, above 0, below 1."""
    cooling_fraction: float = 0.8
    """Part of the steps by whose end the temperature is zero, in (0, 1]."""
    base_every: int = 1
    """Evaluate the frozen base on every k-th row of a batch; 1 is every row. Must divide the batch size."""
    controls: Controls = field(default_factory=Controls)
    """Settings of the methods that gradual fine-tuning is compared with."""

    @abstractmethod
    def data(self) -> ShiftedData:
        """The data sets of the experiment."""

    def check(self) -> None:
        """Refuses settings that cannot work, before anything is started.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        super().check()
        require(self.base_every >= 1, "base_every", self.base_every, "at least 1")
        require(self.coupled_batches >= 1, "coupled_batches", self.coupled_batches, "at least 1")
        if self.coupling in ("independent", "semi-discrete"):
            only = f"1, with --coupling {self.coupling}"
            require(self.coupled_batches == 1, "coupled_batches", self.coupled_batches, only)
        require(len(self.methods) > 0, "methods", self.methods, "at least one method")
        require(len(set(self.methods)) == len(self.methods), "methods", self.methods, "each method once")
        require(0.0 < self.start_weight < 1.0, "start_weight", self.start_weight, "above 0 and below 1")
        require(0.0 < self.cooling_fraction <= 1.0, "cooling_fraction", self.cooling_fraction, "in (0, 1]")
        divides = self.batch_size % self.base_every == 0
        require(divides, "base_every", self.base_every, "a divisor of batch_size")
        self._check_controls()

    def _check_controls(self) -> None:
        given = self.controls
        for name in ("constant_weight", "distillation_weight", "interpolation"):
            value = getattr(given, name)
            require(0.0 < value < 1.0, f"controls.{name}", value, "above 0 and below 1")
        for name in ("l2_sp", "replay_weight", "diff_tuning_weight"):
            value = getattr(given, name)
            require(0.0 < value < math.inf, f"controls.{name}", value, "a finite number above 0")
        for name in ("num_replay", "rollout_steps"):
            require(getattr(given, name) >= 1, f"controls.{name}", getattr(given, name), "at least 1")
        self.check_devices(1)

    def check_devices(self, num_devices: int) -> None:
        """Refuses settings whose batches cannot be spread over so many devices.

        Raises:
            ValueError: that says what was given and what is allowed.
        """
        rows, rest = divmod(self.batch_size, num_devices)
        if rest or rows % self.base_every:
            raise ValueError(
                f"--batch-size is {self.batch_size}; with {num_devices} devices and --base-every {self.base_every} it "
                f"must be a multiple of {num_devices * self.base_every}"
            )
        every = self.controls.replay_every
        if REPLAYING & set(self.methods):
            fits = every >= 2 and rows % every == 0
            on_each = f"{rows} rows of a batch on each device (--batch-size {self.batch_size}, devices {num_devices})"
            require(fits, "controls.replay_every", every, f"a divisor of the {on_each}, at least 2")

    def coupling_of(self, method: str) -> FineTuningCouplingName:
        """How a method pairs noise and data."""
        return self.coupling

    @property
    def num_evaluations(self) -> int | None:
        """Evaluations of the drift for a sample; None where their number is not known beforehand."""
        return self.sampling_steps

    @property
    def cooling_steps(self) -> int:
        """Steps after which the temperature is zero."""
        return max(1, round(self.cooling_fraction * self.steps))


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuses a setting.

    Raises:
        ValueError: naming the flag, what was given and what is allowed, unless ``holds``.
    """
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; allowed is {allowed}")
