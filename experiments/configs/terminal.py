"""Gradual fine-tuning by its two objectives, drift-space and terminal, over the same cooling.

    python -m experiments.train terminal
    python -m experiments.train terminal --domain digits

Two minutes on two CPU cores in the plane, five to eight on digits. Expected in the plane (three seeds): over the
cooling terminal-reward stays closest to q^w p^(1 - w) (mean energy distance 0.008; terminal-base 0.010, gradual-linear
0.011, terminal-target 0.014); at the end all are at a W2 of 0.34 to 0.39 from the moons (floor 0.29). On digits W2 ends
at 3.18 for gradual-linear, 3.32 for terminal-target, 3.7 for terminal-reward and 3.8 for terminal-base, whose weights
leave 1 % of its rows; the base is at 4.28, the floor at 2.74.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from experiments.configs.domains import OF_SHIFTED_DATA, Domain, check_own_settings
from experiments.configs.settings import MethodName, Settings, require
from experiments.data.digits import NUM_TARGET, Shift, class_facts, shifted_digits
from experiments.data.shifted import ShiftedData
from experiments.data.toy2d import MAX_TARGET, Law, shifted_laws
from gft_jax.density_ratio import LEAST_SAMPLES

TerminalName = Literal["terminal-target", "terminal-base", "terminal-reward"]


@dataclass(frozen=True)
class Terminal(Settings):
    """Compare the drift-space and the terminal objective of gradual fine-tuning, over the same cooling.

    At target weight w the drift-space objective leads to the blend of two drifts, the terminal one to the law
    q^w p^(1 - w) of target q and base p. For the latter the ratio of the two laws is learned first, by a classifier.
    The base is kept and used again by the next run with the same settings of it. Results go to a fresh numbered
    folder runs/terminal/NNN; open its report.html. Defaults depend on the domain: see them by --domain NAME --help.
    """

    domain: Domain = "toy2d"
    """toy2d: points in the plane, where the laws q^w p^(1 - w) are known; digits: 8x8 images."""
    methods: tuple[MethodName | TerminalName, ...] = (
        "gradual-linear",
        "terminal-target",
        "terminal-base",
        "terminal-reward",
        "plain",
    )
    """Methods to compare, in the order of the report. terminal-target, terminal-base: flow matching on weighted target
    rows, or on weighted samples of the base; terminal-reward: memoryless adjoint matching with w times the log-ratio
    as its reward. All three cool as gradual-linear does."""
    num_target: int = 1000
    """Number of target samples to fine-tune on, from which the ratio is learned, too; at least 20."""
    num_base_samples: int = 4096
    """Samples of the base for the ratio, and for the rows of terminal-base; at least 20."""
    ratio_steps: int = 3000
    """Training steps of the classifier at most; it stops early."""
    ratio_width: int = 128
    """Width of its two layers."""
    rollout_steps: int = 20
    """Euler-Maruyama steps of the paths of terminal-reward, at least 2."""
    matched_points: int = 10
    """Points of each of these paths to regress on."""
    adjoint_limit: float = 1000.0
    """terminal-reward stops as diverged where the mean norm of adjoints is this many times that of its reward's."""
    steps: int = 1500
    """Steps of fine-tuning."""
    learning_rate: float = 3e-4
    """Learning rate (Adam) of fine-tuning."""
    batch_size: int = 256
    """Rows per step."""
    base_learning_rate: float = 3e-3
    """Peak learning rate (Adam, cosine decay) of pretraining; also the learning rate of from-scratch."""
    hidden: int = 64
    """Width of the drift network."""
    depth: int = 3
    """Residual blocks of the drift network."""
    source: Law = "normal"
    """toy2d: law to pretrain on."""
    target: Law = "moons"
    """toy2d: law to fine-tune on, another than the source."""
    shift: Shift = "rare-classes"
    """digits: what changes between pretraining and fine-tuning. rare-classes: all of the digits 0-4 and a tenth of
    the digits 5-9 to the other digits 5-9, a law that the base covers; those of `train digits` hardly overlap."""

    experiment: ClassVar[str] = "terminal"

    def check(self) -> None:
        """Refuses settings that cannot work."""
        super().check()
        self.check_memoryless()
        require(
            self.coupling == "independent",
            "coupling",
            self.coupling,
            "independent: a coupling of weighted rows would give them another law of the noise",
        )
        most = MAX_TARGET if self.domain == "toy2d" else NUM_TARGET[self.shift]
        within = LEAST_SAMPLES <= self.num_target <= most
        require(within, "num_target", self.num_target, f"{LEAST_SAMPLES} to {most}")
        enough = self.num_base_samples >= LEAST_SAMPLES
        require(enough, "num_base_samples", self.num_base_samples, f"at least {LEAST_SAMPLES}")
        for name in ("ratio_steps", "ratio_width", "matched_points"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.rollout_steps >= 2, "rollout_steps", self.rollout_steps, "at least 2")
        require(self.adjoint_limit > 1, "adjoint_limit", self.adjoint_limit, "above 1")
        if self.domain == "toy2d":
            require(self.source != self.target, "target", self.target, "another law than the source")
        check_own_settings(self, self.domain, OF_SHIFTED_DATA)

    def data(self) -> ShiftedData:
        """Points ``[num, 2]``, or images ``[num, 8, 8]``."""
        if self.domain == "toy2d":
            return shifted_laws(self.source, self.target, self.num_target)
        return shifted_digits(self.shift, self.num_target)

    def facts(self) -> dict[str, Any]:
        """What one sample is, or the classes of both sets."""
        if self.domain == "toy2d":
            return {"samples_are": "points"}
        return class_facts(self.shift)


DEFAULTS: Mapping[Domain, Terminal] = MappingProxyType(
    {
        "toy2d": Terminal(),
        "digits": Terminal(
            domain="digits",
            num_target=400,
            learning_rate=1e-4,
            batch_size=128,
            base_learning_rate=1e-3,
            hidden=256,
            depth=4,
        ),
    }
)
