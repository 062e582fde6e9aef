"""Flows that sample in a few evaluations, at equal cost of training: couplings, reflow, average velocities.

    python -m experiments.train few_steps
    python -m experiments.train few_steps --domain digits

Four and six minutes a seed on two busy CPU cores. Expected, five seeds (experiments/results/few_steps.md): in the plane
a one-step W2 of 1.92 for gradual-linear, 0.32 for reflow, 0.34 for gradual-coupled, 0.35 for mean-flow and 0.38 for
gradual-mean-flow, as by 100 steps of gradual-linear (0.37; floor 0.29); on digits a one-step energy distance of 0.02 to
0.03 for the mean-flow methods, 0.07 for reflow, 0.34 for gradual-coupled and 1.5 for gradual-linear.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from experiments.configs.domains import OF_SHIFTED_DATA, Domain, check_own_settings
from experiments.configs.settings import Controls, FineTuningCouplingName, Settings, require
from experiments.data.digits import NUM_TARGET, Shift, class_facts, shifted_digits
from experiments.data.shifted import ShiftedData
from experiments.data.toy2d import MAX_TARGET, Law, shifted_laws
from experiments.few_steps.methods import FEW_STEP_METHODS, FewStepName, with_stages
from experiments.few_steps.scores import MOST_EVALUATIONS
from experiments.methods import BASE_MAP_STEPS
from gft_jax.objectives.average_target import interval_share

TRAINED = 3.0
"""Cost of training on a row in forward evaluations: one, and a backward pass of about two."""
_OF_DERIVATIVE = 2.0
"""Of the forward-mode derivative of a row: its value and its tangent."""


@dataclass(frozen=True)
class FewSteps(Settings):
    """Compare ways to a fine-tuned flow that samples in one evaluation or a few.

    A method may spend as many evaluations of the network on training as plain fine-tuning does in its steps: where a
    step costs more it takes fewer, and reflow pays for its pairs and for what it starts from. Samples are by Euler's
    method, or by the average velocity where a method learns one, in 1, 2, 4, 8 and 100 evaluations. The base is kept
    and used again by the next run with the same settings of it. Results go to a fresh numbered folder
    runs/few_steps/NNN; open its report.html. Defaults depend on the domain: see them by --domain NAME --help.
    """

    domain: Domain = "toy2d"
    """toy2d: points in the plane; digits: 8x8 images."""
    methods: tuple[FewStepName, ...] = (
        "plain",
        "gradual-linear",
        "gradual-coupled",
        "reflow",
        "reflow-again",
        "mean-flow",
        "gradual-mean-flow",
        "gradual-mean-flow-coupled",
    )
    """Methods to compare, in the order of the report. gradual-coupled: gradual-linear under the coupling below. reflow:
    gradual fine-tuning for half of the cost, then flow matching on pairs of what it has become; reflow-again: another
    round, at half of the cost more. mean-flow, gradual-mean-flow: average velocities; -coupled: under the coupling
    below; -adaptive: with the source's weight 1 / (error + 0.001)."""
    coupling: FineTuningCouplingName = "exact"
    """How noise and data of a batch are paired in the methods named -coupled; the others pair at random."""
    same_time: float = 0.5
    """Fraction of the rows whose two times are the same, where an average velocity is learned."""
    num_pairs: int = 10_000
    """Pairs of noise and samples in a round of reflow."""
    pair_steps: int = 50
    """Euler steps of these samples."""
    num_target: int = 1000
    """Number of target samples to fine-tune on."""
    steps: int = 6000
    """Steps of plain fine-tuning, whose cost all methods have."""
    learning_rate: float = 3e-4
    """Learning rate (Adam) of fine-tuning."""
    batch_size: int = 256
    """Rows per step."""
    base_learning_rate: float = 3e-3
    """Peak learning rate (Adam, cosine decay) of pretraining."""
    hidden: int = 64
    """Width of the drift network."""
    depth: int = 3
    """Residual blocks of the drift network."""
    max_frequency: float = 8.0
    """Largest angular frequency of its features of t, at least 1; see `gft_jax.networks.SecondTime`."""
    eval_every: int = 500
    """Steps of plain between two evaluations of the raw parameters on held-out data; the others, whose steps are not
    as many, are evaluated as often in a run."""
    sampling_steps: int = 100
    """Euler steps of sampling paths: of their length, and of the distance to the base drift on them."""
    source: Law = "8-gaussians"
    """toy2d: law to pretrain on."""
    target: Law = "moons"
    """toy2d: law to fine-tune on, another than the source."""
    shift: Shift = "unseen-classes"
    """digits: what changes between pretraining and fine-tuning, as in `train digits`."""

    experiment: ClassVar[str] = "few_steps"

    def check(self) -> None:
        """Refuses settings that cannot work."""
        for name in self.methods:
            require(name in FEW_STEP_METHODS, "methods", name, f"any of {', '.join(FEW_STEP_METHODS)}")
        require(0.0 < self.same_time < 1.0, "same_time", self.same_time, "above 0 and below 1")
        super().check()
        require(
            self.base_every == 1, "base_every", self.base_every, "1: average velocities need it on every row"
        )
        require(
            self.log_every is None, "log_every", self.log_every, "none: the steps of each method are its own"
        )
        require(
            self.controls == Controls(),
            "controls",
            "changed",
            "its default: no method here has such settings",
        )
        frequency = self.max_frequency
        require(1.0 <= frequency < math.inf, "max_frequency", frequency, "a finite number of at least 1")
        for name in ("num_pairs", "pair_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        most = MAX_TARGET if self.domain == "toy2d" else NUM_TARGET[self.shift]
        require(1 <= self.num_target <= most, "num_target", self.num_target, f"1 to {most}")
        if self.domain == "toy2d":
            require(self.source != self.target, "target", self.target, "another law than the source")
        check_own_settings(self, self.domain, OF_SHIFTED_DATA)
        self._check_coupling()
        self._check_path()
        self._check_steps()

    def _check_coupling(self) -> None:
        if any(FEW_STEP_METHODS[name].coupled for name in self.stages):
            pairs = self.coupling != "independent"
            require(pairs, "coupling", self.coupling, "any other, for the methods named -coupled")
        else:
            unused = (self.coupling, self.coupled_batches) == (FewSteps.coupling, FewSteps.coupled_batches)
            given = f"{self.coupling}, of {self.coupled_batches} batches"
            require(unused, "coupling", given, f"{FewSteps.coupling}, of 1, without methods named -coupled")

    def _check_path(self) -> None:
        kinds = [FEW_STEP_METHODS[name] for name in self.stages]
        if any(kind.after is not None for kind in kinds):
            require(self.path == "linear", "path", self.path, "linear, whose lines reflow straightens")
        if any(kind.two_times for kind in kinds):
            whole = self.path in ("linear", "trigonometric", "linear-noisy")
            allowed = "linear, trigonometric or linear-noisy, which an average velocity can cross from 0 to 1"
            require(whole, "path", self.path, allowed)

    def _check_steps(self) -> None:
        for name in self.stages:
            if self.interval_of(name) == 0:
                pairs = ", or fewer --num-pairs or --pair-steps" if self.pairs_cost(name) else ""
                raise ValueError(
                    f"--steps {self.steps} and --eval-every {self.eval_every} leave {name} no step between two "
                    f"evaluations: give more --steps, or evaluate less often{pairs}"
                )
        if self.profile is not None:
            first = self.methods[0]
            fits = self.profile[1] <= self.steps_of(first)
            allowed = f"up to {self.steps_of(first)}, the steps of {first}, which is profiled"
            require(fits, "profile", " ".join(map(str, self.profile)), allowed)

    def check_devices(self, num_devices: int) -> None:
        """Refuses settings whose batches cannot be spread over so many devices."""
        super().check_devices(num_devices)
        if not any(FEW_STEP_METHODS[name].two_times for name in self.stages):
            return
        try:
            period = interval_share(self.same_time).denominator
        except ValueError as error:
            raise ValueError(f"--same-time: {error}") from error
        fits = self.batch_size % (num_devices * period) == 0
        allowed = (
            f"a multiple of {num_devices * period}: with --same-time {self.same_time:g}, {period} on a device"
        )
        require(fits, "batch_size", self.batch_size, allowed)

    @property
    def num_evaluations(self) -> int:
        """Evaluations for the samples that are scored, but for those in fewer."""
        return MOST_EVALUATIONS

    @property
    def stages(self) -> tuple[FewStepName, ...]:
        """The methods, each after those whose samples it learns from."""
        return with_stages(self.methods)

    def coupling_of(self, method: str) -> FineTuningCouplingName:
        """How a method pairs noise and data."""
        return self.coupling if FEW_STEP_METHODS[method].coupled else "independent"

    def interval_of(self, method: str) -> int:
        """Training steps of a method between two evaluations: as many as its cost allows, perhaps none."""
        whole = TRAINED * self.batch_size * self.steps
        budget = FEW_STEP_METHODS[method].share * whole - self.pairs_cost(method)
        one_each = self._step_cost(method, self.cooling_fraction) * (self.steps // self.eval_every)
        # A budget of whole steps is not to lose one to an error in its last digit.
        return max(0, int(budget / one_each + 1e-9))

    def steps_of(self, method: str) -> int:
        """Training steps of a method."""
        return self.interval_of(method) * (self.steps // self.eval_every)

    def pairs_cost(self, method: str) -> float:
        """Evaluations for the pairs of a method, which is nothing but in reflow."""
        return 0.0 if FEW_STEP_METHODS[method].after is None else float(self.num_pairs * self.pair_steps)

    def cost_at(self, method: str, step: int) -> float:
        """Evaluations, forward ones, that training has cost at a step: a backward pass counts two, a derivative two.

        Of reflow with all that it stands on. The base counts while the temperature is not zero, and where its samples
        decide who is paired; what a coupling costs besides does not.
        """
        after = FEW_STEP_METHODS[method].after
        before = 0.0 if after is None else self.cost_at(after, self.steps_of(after))
        cooling_steps = round(self.cooling_fraction * self.steps_of(method))
        cooled = min(step, cooling_steps) / step if step else 0.0
        return before + self.pairs_cost(method) + step * self._step_cost(method, cooled)

    def _step_cost(self, method: str, cooled: float) -> float:
        """Of a step, the mean over steps of which this part has a temperature above zero."""
        kind = FEW_STEP_METHODS[method]
        derivative = _OF_DERIVATIVE * (1.0 - self.same_time) if kind.two_times else 0.0
        pairing = float(BASE_MAP_STEPS) if self.coupling_of(method) == "base-exact" else 0.0
        return self.batch_size * (TRAINED + derivative + pairing + (cooled if kind.gradual else 0.0))

    def data(self) -> ShiftedData:
        """Points ``[num, 2]``, or images ``[num, 8, 8]``."""
        if self.domain == "toy2d":
            return shifted_laws(self.source, self.target, self.num_target)
        return shifted_digits(self.shift, self.num_target)

    def facts(self) -> dict[str, Any]:
        """What one sample is, or the classes of both sets; how long each method trains, and at what cost."""
        steps = {name: self.steps_of(name) for name in self.stages}
        cost = {name: self.cost_at(name, steps[name]) for name in self.stages}
        of_samples = {"samples_are": "points"} if self.domain == "toy2d" else class_facts(self.shift)
        return {**of_samples, "method_steps": steps, "method_cost": cost}


DEFAULTS: Mapping[Domain, FewSteps] = MappingProxyType(
    {
        "toy2d": FewSteps(),
        "digits": FewSteps(
            domain="digits",
            num_target=512,
            num_pairs=5000,
            steps=4000,
            eval_every=250,
            learning_rate=1e-4,
            batch_size=128,
            base_learning_rate=1e-3,
            hidden=256,
            depth=4,
        ),
    }
)
