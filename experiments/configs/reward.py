"""Reward fine-tuning of a flow by many methods, each at several strengths.

    python -m experiments.train reward
    python -m experiments.train reward --domain digits

Two to four minutes on two CPU cores in the plane, four to eight on digits. Expected in the plane (three seeds; reward
of the base -5.9): memoryless adjoint matching stays within an energy distance of 0.02 of the tilted law of equal
reward, with 0.92 or more of its samples near data, and moves samples furthest; at reward -1.4, am-3 and draft-3 (which
agree) move samples a third as far in mean square (4.7 against 13.5), and 0.29 of theirs are near data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from experiments.configs.domains import Domain, check_own_settings
from experiments.configs.settings import RunSettings, require
from experiments.data.toy2d import Law
from experiments.reward.names import check_truncation, parse_method, run_name, split_run

STRENGTHS: Mapping[Domain, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "toy2d": {
            "am-3": (0.3, 0.6, 2.0),
            "am-10": (0.6, 1.5, 4.0),
            "am-full": (2.0, 5.0, 15.0),
            "am-10-p3": (0.1, 0.4, 1.5),
            "am-10-p4": (0.03, 0.2, 1.0),
            "memoryless": (0.6, 1.5, 4.0),
            "draft-3": (0.3, 0.6, 2.0),
            "orw": (0.3, 1.0, 3.0),
            "value-guidance": (0.2, 0.6, 2.0),
        },
        "digits": {
            "am-3": (0.2, 0.7, 2.0),
            "am-10": (0.3, 1.0, 3.0),
            "am-full": (0.3, 1.0, 3.0),
            "am-10-p3": (0.1, 0.4, 1.5),
            "am-10-p4": (0.05, 0.3, 1.5),
            "memoryless": (0.3, 1.0, 3.0),
            "draft-3": (0.2, 0.7, 2.0),
            "orw": (0.15, 0.4, 1.0),
            "value-guidance": (0.1, 0.4, 1.5),
        },
    }
)
"""Strengths of the methods that are named without one: lam, the price of control; for orw tau, the sharpness."""

_OF_DOMAIN: Mapping[Domain, tuple[str, ...]] = MappingProxyType(
    {"toy2d": ("source", "centre", "curvature"), "digits": ("target_class", "classifier_steps")}
)
"""Settings that one domain alone has."""


@dataclass(frozen=True)
class Reward(RunSettings):
    """Raise a reward of a pretrained flow by several methods and strengths, and report what it costs.

    The base is kept and used again by the next run with the same settings of it. Results go to a fresh numbered
    folder runs/reward/NNN; open its report.html. Defaults depend on the domain: see them by --domain NAME --help.
    """

    domain: Domain = "toy2d"
    """toy2d: points in the plane, the reward is nearness to a point; digits: 8x8 images, the reward is the
    log-probability of one class by a classifier that is trained in the run, and judged by another."""
    methods: tuple[str, ...] = tuple(STRENGTHS["toy2d"])
    """Methods to compare, in the order of the report: am-K (deterministic adjoint matching on the last K steps),
    am-full, am-K-pP (norm power P as cost), memoryless, draft-K, orw, value-guidance; or runs, METHOD@STRENGTH, such as
    am-3@0.5. A method without a strength is run at several."""
    steps: int = 300
    """Steps of fine-tuning."""
    learning_rate: float = 1e-3
    """Learning rate (Adam) of fine-tuning, of all methods; gradients are clipped at norm 1."""
    batch_size: int = 128
    """Rows per step."""
    base_learning_rate: float = 3e-3
    """Peak learning rate (Adam, cosine decay) of pretraining."""
    hidden: int = 64
    """Width of the drift network."""
    depth: int = 3
    """Residual blocks of the drift network."""
    eval_every: int = 100
    """Steps between two evaluations of the raw parameters."""
    sampling_steps: int = 20
    """Euler steps N of sampling, in training and in the evaluations."""
    matched_points: int = 10
    """Points of a path to regress on, drawn anew for each path of more points; of the methods that regress on paths."""
    orw_base_weight: float = 1.0
    """Weight alpha of the squared distance to the base's velocity in orw."""
    adjoint_limit: float = 1000.0
    """A run stops as diverged where the mean norm of adjoints is this many times that of the reward's gradient."""
    source: Law = "8-gaussians"
    """toy2d: law to pretrain on."""
    centre: tuple[float, float] = (1.5, 0.0)
    """toy2d: the point m of the reward -(kappa/2) |x - m|^2."""
    curvature: float = 1.0
    """toy2d: kappa, above 0."""
    target_class: int = 3
    """digits: the class that is wanted, 0 to 9."""
    classifier_steps: int = 1500
    """digits: training steps of each classifier."""

    experiment: ClassVar[str] = "reward"

    def runs(self) -> tuple[str, ...]:
        """Names of all runs, METHOD@STRENGTH.

        Raises:
            ValueError: for a method without a strength that has no strengths of its own.
        """
        names = []
        for given in self.methods:
            named, strength = split_run(given)
            method = parse_method(named).name
            strengths = STRENGTHS[self.domain].get(method) if strength is None else (strength,)
            if strengths is None:
                raise ValueError(f"--methods names {method}, which needs a strength: {method}@0.5 or another")
            names += [run_name(method, each) for each in strengths]
        return tuple(names)

    def check(self) -> None:
        """Refuses settings that cannot work."""
        super().check()
        require(len(self.methods) > 0, "methods", self.methods, "at least one method")
        runs = self.runs()
        for name in runs:
            check_truncation(parse_method(split_run(name)[0]), self.sampling_steps)
        require(len(set(runs)) == len(runs), "methods", self.methods, "each run once")
        self.check_memoryless()
        require(self.sampling_steps >= 2, "sampling_steps", self.sampling_steps, "at least 2")
        require(self.matched_points >= 1, "matched_points", self.matched_points, "at least 1")
        require(
            0 <= self.orw_base_weight < math.inf,
            "orw_base_weight",
            self.orw_base_weight,
            "a finite number, 0 or above",
        )
        require(self.adjoint_limit > 1, "adjoint_limit", self.adjoint_limit, "above 1")
        require(all(map(math.isfinite, self.centre)), "centre", self.centre, "two finite numbers")
        positive = 0 < self.curvature < math.inf
        require(positive, "curvature", self.curvature, "a finite number above 0")
        require(0 <= self.target_class <= 9, "target_class", self.target_class, "a class, 0 to 9")
        check_own_settings(self, self.domain, _OF_DOMAIN)
        require(self.classifier_steps >= 1, "classifier_steps", self.classifier_steps, "at least 1")

    def facts(self) -> dict[str, Any]:
        """The reward in words."""
        if self.domain == "digits":
            wanted = f"the log-probability of the class {self.target_class} by a classifier"
            return {"pretrained_on": "all digits", "reward": wanted}
        centre = ", ".join(f"{each:g}" for each in self.centre)
        wanted = f"-{self.curvature / 2:g} |x - m|² with m = ({centre})"
        return {"pretrained_on": self.source, "reward": wanted, "samples_are": "points"}


DEFAULTS: Mapping[Domain, Reward] = MappingProxyType(
    {
        "toy2d": Reward(),
        "digits": Reward(
            domain="digits",
            batch_size=64,
            base_steps=6000,
            base_learning_rate=1e-3,
            hidden=192,
            depth=4,
        ),
    }
)
