"""The methods that are compared: one row each, all trained by the same step.

Gradual fine-tuning stands beside plain fine-tuning, training from scratch, and the controls without which a gain would
prove nothing: whatever else slows training down, or holds the model near the base.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Key

import gft_jax as gft
from experiments.configs.settings import CouplingName, FineTuningCouplingName, PathName, Settings
from gft_jax.cooling import Cooling
from gft_jax.couplings import Coupling, Pairing
from gft_jax.paths import Path
from gft_jax.types import Drift, Objective, Params, TimeSampler


class Method(NamedTuple):
    """What distinguishes one method from another."""

    objective: Objective
    cooling: Cooling
    optimizer: optax.GradientTransformation
    from_base: bool = True
    """Whether training starts at the pretrained parameters."""
    replays: bool = False
    """Whether every ``replay_every``-th row of a batch is a sample of the base."""
    evaluated: Callable[[Params, Params], Params] = lambda params, base_params: params
    """``(params, base_params)`` -> the parameters that are evaluated and kept."""


class TimedPath(NamedTuple):
    """A probability path, and the times between which its velocity is bounded."""

    path: Path
    start: float = 0.0
    end: float = 1.0

    @property
    def times(self) -> TimeSampler:
        """Uniform times between the bounds."""
        return gft.objectives.time_sampling.uniform(self.start, self.end)

    def beta_times(self, a: float, b: float) -> TimeSampler:
        """Times of a beta law between the bounds."""
        return gft.objectives.time_sampling.beta(a, b, self.start, self.end)


PATHS: dict[PathName, Callable[[], TimedPath]] = {
    "linear": lambda: TimedPath(gft.paths.linear()),
    "trigonometric": lambda: TimedPath(gft.paths.trigonometric()),
    "variance-preserving": lambda: TimedPath(gft.paths.variance_preserving(), end=1 - 1e-3),
    "linear-noisy": lambda: TimedPath(gft.paths.with_constant_noise(gft.paths.linear(), 0.1)),
    "brownian-bridge": lambda: TimedPath(gft.paths.brownian_bridge(0.3), 1e-2, 1 - 1e-2),
}

COUPLINGS: dict[CouplingName, Callable[[], Coupling]] = {
    "independent": gft.couplings.independent,
    "exact": gft.couplings.exact,
    "sinkhorn": gft.couplings.sinkhorn,
    "one-to-one": lambda: gft.couplings.sinkhorn(rounding=gft.couplings.one_to_one),
    "unbalanced": gft.couplings.unbalanced,
}


BASE_MAP_STEPS = 8
"""Euler steps of the base where its samples decide who is paired."""


def semi_discrete(
    key: Key[Array, ""],
    x0: Array | np.ndarray,
    x1: Array | np.ndarray,
    cond: object = None,
    source_cond: object = None,
    /,
) -> Pairing:
    """The coupling where it is only named: that of `gft_jax.pairing.chosen_batches` knows no batch of data to pair."""
    raise ValueError(
        "the semi-discrete coupling chooses data out of a whole dataset, and does not pair the rows of a batch"
    )


def coupling_of(name: FineTuningCouplingName, drift: Drift, base_params: Params) -> Coupling:
    """The coupling of a fine-tuning run."""
    if name == "base-exact":
        base = gft.sampling.flow_map(drift, base_params, num_steps=BASE_MAP_STEPS)
        return gft.couplings.seen_through(gft.couplings.exact(), base)
    if name == "semi-discrete":
        return semi_discrete
    return COUPLINGS[name]()


GEOMETRIC_RISE = 1000.0
"""Factor by which the learning rate of plain-geometric rises."""

_ZERO = gft.cooling.constant(temperature=0.0)


def _flow_matching(drift: Drift, path: TimedPath) -> Objective:
    return gft.objectives.flow_matching(drift, path.path, time_sampler=path.times)


def _gradual(config: Settings, drift: Drift, path: TimedPath, cooling: Cooling) -> Method:
    objective = gft.objectives.gradual(
        drift, path.path, time_sampler=path.times, base_every=config.base_every
    )
    return Method(objective, cooling, optax.adam(config.learning_rate))


def gradual_linear(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, target weight w linear in the step."""
    weights = (config.start_weight, 1.0)
    return _gradual(
        config, drift, path, gft.cooling.linear(target_weight=weights, num_steps=config.cooling_steps)
    )


def gradual_self_paced(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, cooled as fast as the student follows."""
    return _gradual(
        config, drift, path, gft.cooling.self_paced(config.cooling_steps, start=config.start_weight)
    )


def gradual_fast(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, target weight linear in the step, in a quarter of the cooling steps."""
    weights, num_steps = (config.start_weight, 1.0), max(1, config.cooling_steps // 4)
    return _gradual(config, drift, path, gft.cooling.linear(target_weight=weights, num_steps=num_steps))


def gradual_cosine(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, target weight along half a cosine."""
    weights = (config.start_weight, 1.0)
    return _gradual(
        config, drift, path, gft.cooling.cosine(target_weight=weights, num_steps=config.cooling_steps)
    )


def gradual_temperature(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, temperature linear in the step: most of the way is left to the end."""
    temperatures = (1.0 / config.start_weight - 1.0, 0.0)
    return _gradual(
        config, drift, path, gft.cooling.linear(temperature=temperatures, num_steps=config.cooling_steps)
    )


def gradual_constant(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning at one temperature: what the penalty does without cooling."""
    return _gradual(config, drift, path, gft.cooling.constant(target_weight=config.controls.constant_weight))


def plain(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Flow matching on the target, started at the base."""
    return Method(_flow_matching(drift, path), _ZERO, optax.adam(config.learning_rate))


def from_scratch(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Flow matching on the target, started at random parameters."""
    return Method(_flow_matching(drift, path), _ZERO, optax.adam(config.base_learning_rate), from_base=False)


def plain_warmup(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning whose learning rate rises as the target weight of gradual-linear does.

    At the base, the gradient of gradual-linear is that of plain fine-tuning times the target weight: under gradient
    descent, this rate would make the two start alike. Adam does not see the scale of a gradient, and they do not:
    here the parameters move less far at first, but all of the way towards the target, so that the effective target
    weight runs far ahead of gradual-linear's. `plain_geometric` is the control that leaves the base as slowly.
    """
    rate = config.learning_rate
    schedule = optax.linear_schedule(config.start_weight * rate, rate, config.cooling_steps)
    return plain(config, drift, path)._replace(optimizer=optax.adam(schedule))


def plain_geometric(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning whose learning rate rises geometrically over the cooling steps, a thousandfold.

    It leaves the base about as slowly, in effective target weight, as gradual-linear: of the factors 30, 100, 300,
    1000, 3000 and more, this one stays closest to gradual-linear's weight over the cooling, within 0.2 (digits, 1000
    steps, two seeds). Its parameters end about half as far from the base as those of plain and gradual-linear.
    """
    rate, num_steps = config.learning_rate, config.cooling_steps
    schedule = optax.exponential_decay(rate / GEOMETRIC_RISE, num_steps, GEOMETRIC_RISE, end_value=rate)
    return plain(config, drift, path)._replace(optimizer=optax.adam(schedule))


def l2_sp(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning with an L2 penalty on the distance from the base's parameters."""
    method = plain(config, drift, path)
    return method._replace(objective=gft.objectives.l2_sp(method.objective, config.controls.l2_sp))


def prior_preservation(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning that rehearses samples of the base."""
    flow_matching, controls = _flow_matching(drift, path), config.controls
    objective = gft.objectives.with_replay(
        flow_matching, flow_matching, every=controls.replay_every, weight=controls.replay_weight
    )
    return plain(config, drift, path)._replace(objective=objective, replays=True)


def diff_tuning(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Diff-Tuning: new data at noisy times, samples of the base at times near data."""
    towards_noise, towards_data = (
        gft.objectives.flow_matching(drift, path.path, time_sampler=path.beta_times(*shape))
        for shape in ((1.0, 2.0), (2.0, 1.0))
    )
    objective = gft.objectives.with_replay(
        towards_noise,
        towards_data,
        every=config.controls.replay_every,
        weight=config.controls.diff_tuning_weight,
    )
    return plain(config, drift, path)._replace(objective=objective, replays=True)


def distillation(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning with a penalty on the distance to the base on the base's own paths."""
    objective = gft.objectives.gradual(
        drift,
        path.path,
        time_sampler=path.times,
        base_every=config.base_every,
        base_path=gft.objectives.rolled_out(config.controls.rollout_steps),
    )
    cooling = gft.cooling.constant(target_weight=1.0 - config.controls.distillation_weight)
    return plain(config, drift, path)._replace(objective=objective, cooling=cooling)


def interpolated(config: Settings, drift: Drift, path: TimedPath) -> Method:
    """Plain fine-tuning, evaluated at parameters between the base's and its own (WiSE-FT, arXiv:2109.01903)."""
    share = config.controls.interpolation

    def between(params: Params, base_params: Params) -> Params:
        return jax.tree.map(lambda new, base: share * new + (1.0 - share) * base, params, base_params)

    return plain(config, drift, path)._replace(evaluated=between)


METHODS: dict[str, Callable[[Settings, Drift, TimedPath], Method]] = {
    "gradual-linear": gradual_linear,
    "gradual-self-paced": gradual_self_paced,
    "plain": plain,
    "from-scratch": from_scratch,
    "gradual-fast": gradual_fast,
    "gradual-cosine": gradual_cosine,
    "gradual-temperature": gradual_temperature,
    "gradual-constant": gradual_constant,
    "plain-warmup": plain_warmup,
    "plain-geometric": plain_geometric,
    "l2-sp": l2_sp,
    "prior-preservation": prior_preservation,
    "distillation": distillation,
    "diff-tuning": diff_tuning,
    "interpolated": interpolated,
}
