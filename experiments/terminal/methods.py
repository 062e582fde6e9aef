"""The methods that follow the terminal objective: three ways to the law ``q^w p^(1 - w)``, over one cooling."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

import gft_jax as gft
from experiments.configs.terminal import Terminal
from experiments.methods import Method, TimedPath
from gft_jax.cooling import Cooling
from gft_jax.types import Drift, Objective

LogRatio = Callable[..., Array]
"""``l = log q - log p``, ``(x, cond=None)`` -> ``[rows]`` in nats."""


class TerminalMethod(NamedTuple):
    """What distinguishes one of these methods from another."""

    objective: Callable[[Terminal, Drift, TimedPath, LogRatio], Objective]
    rows: Literal["target", "base", "noise"]
    """Where the rows of its batches come from: the new data, samples of the base, or noise alone."""


def method_of(name: str, config: Terminal, drift: Drift, path: TimedPath, ratio: LogRatio) -> Method:
    """Objective, cooling and optimiser of a method."""
    objective = TERMINAL_METHODS[name].objective(config, drift, path, ratio)
    return Method(objective, _cooling(config), optax.adam(config.learning_rate))


def _cooling(config: Terminal) -> Cooling:
    """That of gradual-linear."""
    weights = (config.start_weight, 1.0)
    return gft.cooling.linear(target_weight=weights, num_steps=config.cooling_steps)


def _weighted(rows: Literal["target", "base"]) -> TerminalMethod:
    def objective(config: Terminal, drift: Drift, path: TimedPath, ratio: LogRatio) -> Objective:
        return gft.objectives.terminal(drift, ratio, path.path, rows_from=rows, time_sampler=path.times)

    return TerminalMethod(objective, rows)


def _as_reward(config: Terminal, drift: Drift, path: TimedPath, ratio: LogRatio) -> Objective:
    """Reward ``w l`` at lam = 1, which is the reward l at ``lam = 1 / w = 1 + beta``."""

    def price(temperature: Any) -> Array:
        return jnp.asarray(1.0 + temperature)

    return gft.objectives.memoryless_adjoint_matching(
        drift,
        ratio,
        cost_weight=price,
        path=path.path,
        num_steps=config.rollout_steps,
        num_matched=min(config.matched_points, config.rollout_steps - 1),
    )


TERMINAL_METHODS: Mapping[str, TerminalMethod] = MappingProxyType(
    {
        "terminal-target": _weighted("target"),
        "terminal-base": _weighted("base"),
        "terminal-reward": TerminalMethod(_as_reward, "noise"),
    }
)
