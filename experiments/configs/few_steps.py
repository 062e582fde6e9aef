"""Flows that sample in a few evaluations, at equal cost of training: couplings, reflow, average velocities.

python -m experiments.train few_steps
python -m experiments.train few_steps --domain digits
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from experiments.configs.domains import Domain, check_own_settings
from experiments.configs.settings import FineTuningCouplingName, Settings, require
from experiments.data.digits import NUM_TARGET, Shift, class_facts, shifted_digits
from experiments.data.shifted import ShiftedData
from experiments.data.toy2d import MAX_TARGET, Law, shifted_laws
from experiments.few_steps.methods import FEW_STEP_METHODS, FewStepName, with_stages
from gft_jax.objectives.average_target import interval_share

_OF_DOMAIN: Mapping[Domain, tuple[str, ...]] = MappingProxyType(
    {"toy2d": ("source", "target"), "digits": ("shift",)}
)
"""Settings that one domain alone has."""
TRAINED = 3.0
"""Cost of training on a row in forward evaluations: one, and a backward pass of about two."""
_OF_DERIVATIVE = 2.0
"""Of the forward-mode derivative of a row: its value and its tangent."""


@dataclass(frozen=True)
class FewSteps(Settings):
    """Compare ways to a fine-tuned flow that samples in one evaluation or a few.

    All methods but reflow-again may spend as many evaluations of the network on training as plain fine-tuning does in
    its steps: where a step costs more they take fewer, and reflow pays for its pairs. Samples are by Euler's method,
    or by the average velocity where a method learns one, in 1, 2, 4, 8 and 100 evaluations. The base is kept and used
    again by the next run with the same settings of it. Results go to a fresh numbered folder runs/few_steps/NNN; open
    its report.html. Defaults depend on the domain: see them by --domain NAME --help.
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
    eval_every: int = 250
    """Steps between two evaluations of the raw parameters on held-out data."""
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
        super().check()
        require(
            self.base_every == 1, "base_every", self.base_every, "1: average velocities need it on every row"
        )
        for name in ("num_pairs", "pair_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        most = MAX_TARGET if self.domain == "toy2d" else NUM_TARGET[self.shift]
        require(1 <= self.num_target <= most, "num_target", self.num_target, f"1 to {most}")
        require(0.0 <= self.same_time < 1.0, "same_time", self.same_time, "in [0, 1)")
        if self.domain == "toy2d":
            require(self.source != self.target, "target", self.target, "another law than the source")
        check_own_settings(self, self.domain, _OF_DOMAIN)
        for name in self.stages:
            if self.steps_of(name) == 0:
                raise ValueError(
                    f"--steps {self.steps} leave no {self.eval_every} steps (--eval-every) for {name}: give more "
                    "--steps, or fewer --num-pairs or --pair-steps"
                )

    def check_devices(self, num_devices: int) -> None:
        """Refuses settings whose batches cannot be spread over so many devices."""
        super().check_devices(num_devices)
        period = interval_share(self.same_time).denominator
        if any(FEW_STEP_METHODS[name].two_times for name in self.stages):
            fits = self.batch_size % (num_devices * period) == 0
            allowed = f"a multiple of {num_devices * period}: with --same-time {self.same_time:g}, {period} on a device"
            require(fits, "batch_size", self.batch_size, allowed)

    @property
    def stages(self) -> tuple[FewStepName, ...]:
        """The methods, each after those whose samples it learns from."""
        return with_stages(self.methods)

    def coupling_of(self, method: str) -> FineTuningCouplingName:
        """How a method pairs noise and data."""
        return self.coupling if FEW_STEP_METHODS[method].coupled else "independent"

    def steps_of(self, method: str) -> int:
        """Training steps of a method: as many whole intervals between evaluations as its cost allows, perhaps none."""
        budget = FEW_STEP_METHODS[method].share * TRAINED * self.batch_size * self.steps - self.pairs_cost(
            method
        )
        chunk = self._step_cost(method, self.cooling_fraction) * self.eval_every
        # Rounded: a budget of whole chunks is not to lose one to an error in its last digit.
        return self.eval_every * max(0, int(budget / chunk + 1e-9))

    def pairs_cost(self, method: str) -> float:
        """Evaluations for the pairs of a method, which is nothing but in reflow."""
        return 0.0 if FEW_STEP_METHODS[method].after is None else float(self.num_pairs * self.pair_steps)

    def cost_at(self, method: str, step: int) -> float:
        """Evaluations, forward ones, that training has cost at a step: a backward pass counts two, a derivative two.

        Of reflow with all that it stands on; the base counts while the temperature is not zero.
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
        return self.batch_size * (TRAINED + derivative + (cooled if kind.gradual else 0.0))

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
            learning_rate=1e-4,
            batch_size=128,
            base_learning_rate=1e-3,
            hidden=256,
            depth=4,
        ),
    }
)
