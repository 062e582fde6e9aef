"""The methods that are compared: one row each, all trained by the same step."""

from collections.abc import Callable
from typing import NamedTuple

import gft_jax as gft
from experiments.configs.digits import CouplingName, Digits, MethodName, PathName
from gft_jax.cooling import Cooling
from gft_jax.couplings import Coupling
from gft_jax.paths import Path
from gft_jax.types import Drift, Objective, TimeSampler


class Method(NamedTuple):
    """What distinguishes one method from another."""

    objective: Objective
    cooling: Cooling
    learning_rate: float
    from_base: bool = True
    """Whether training starts at the pretrained parameters."""


class TimedPath(NamedTuple):
    """A probability path, and times at which its velocity is bounded."""

    path: Path
    times: TimeSampler


_uniform = gft.objectives.time_sampling.uniform

PATHS: dict[PathName, Callable[[], TimedPath]] = {
    "linear": lambda: TimedPath(gft.paths.linear(), _uniform()),
    "trigonometric": lambda: TimedPath(gft.paths.trigonometric(), _uniform()),
    "variance-preserving": lambda: TimedPath(gft.paths.variance_preserving(), _uniform(end=1 - 1e-3)),
    "linear-noisy": lambda: TimedPath(gft.paths.with_constant_noise(gft.paths.linear(), 0.1), _uniform()),
    "brownian-bridge": lambda: TimedPath(gft.paths.brownian_bridge(0.3), _uniform(1e-2, 1 - 1e-2)),
}

COUPLINGS: dict[CouplingName, Callable[[], Coupling]] = {
    "independent": gft.couplings.independent,
    "exact": gft.couplings.exact,
    "sinkhorn": gft.couplings.sinkhorn,
}


def _gradual(config: Digits, drift: Drift, path: TimedPath, cooling: Cooling) -> Method:
    objective = gft.objectives.gradual(
        drift, path.path, time_sampler=path.times, base_every=config.base_every
    )
    return Method(objective, cooling, config.learning_rate)


def gradual_linear(config: Digits, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, target weight w linear in the step."""
    weights = (config.start_weight, 1.0)
    return _gradual(
        config, drift, path, gft.cooling.linear(target_weight=weights, num_steps=config.cooling_steps)
    )


def gradual_self_paced(config: Digits, drift: Drift, path: TimedPath) -> Method:
    """Gradual fine-tuning, cooled as fast as the student follows."""
    return _gradual(
        config, drift, path, gft.cooling.self_paced(config.cooling_steps, start=config.start_weight)
    )


def _flow_matching(drift: Drift, path: TimedPath) -> Objective:
    return gft.objectives.flow_matching(drift, path.path, time_sampler=path.times)


def plain(config: Digits, drift: Drift, path: TimedPath) -> Method:
    """Flow matching on the target, started at the base."""
    zero = gft.cooling.constant(temperature=0.0)
    return Method(_flow_matching(drift, path), zero, config.learning_rate)


def from_scratch(config: Digits, drift: Drift, path: TimedPath) -> Method:
    """Flow matching on the target, started at random parameters."""
    zero = gft.cooling.constant(temperature=0.0)
    return Method(_flow_matching(drift, path), zero, config.base_learning_rate, from_base=False)


METHODS: dict[MethodName, Callable[[Digits, Drift, TimedPath], Method]] = {
    "gradual-linear": gradual_linear,
    "gradual-self-paced": gradual_self_paced,
    "plain": plain,
    "from-scratch": from_scratch,
}
