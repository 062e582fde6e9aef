"""The flow of a drift as a map, for those that are handed one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from gft_jax.sampling.arguments import checked_count
from gft_jax.sampling.ode import sample_ode
from gft_jax.types import Drift


def flow_map(drift: Drift, params: Any, *, num_steps: int = 8) -> Callable[[Array], Array]:
    """The map from noise to samples of a flow, ``x0 [batch, *event]`` -> the solution at 1 by equal Euler steps.

    A pytree whose leaves are ``params``: given to a compiled program as an argument, they are no constants of it. For
    `gft_jax.couplings.seen_through`, where few steps do, the map being asked for neighbours only.

    Args:
        drift: the velocity field; it is told no condition.
        params: its parameters.
        num_steps: number of Euler steps, >= 1.

    Raises:
        ValueError: if num_steps is no positive integer; when called, what `sample_ode` raises.
    """
    return jax.tree_util.Partial(
        functools.partial(_flow, drift, checked_count("num_steps", num_steps)), params
    )


def _flow(drift: Drift, num_steps: int, params: Any, x0: Array) -> Array:
    return sample_ode(drift, params, x0, num_steps=num_steps).x
