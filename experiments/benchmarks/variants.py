"""Updates of deterministic adjoint matching, from the full adjoint to the cheapest that are measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from gft_jax.types import Drift, Objective, Reward

NUM_STEPS = 50
TRUNCATION = 3
COARSE = np.append(
    np.linspace(0.0, 1 - TRUNCATION / NUM_STEPS, 11)[:-1], 1 - np.arange(TRUNCATION, -1, -1) / NUM_STEPS
)
"""Ten steps up to where the last three of fifty begin."""
FULL = "full"
"""Name of the one that all others are compared with."""


class Variant(NamedTuple):
    """A way to take updates."""

    words: str
    """What it is, for tables."""
    options: Mapping[str, Any]
    """Keywords of `gft.objectives.adjoint_matching`."""
    num_updates: int = 1
    """Updates on each path."""
    half_precision: bool = False
    """Whether the paths are rolled out with the network in bfloat16; adjoint and regression are not."""


_EQUAL, _LAST = {"num_steps": NUM_STEPS}, {"truncation": TRUNCATION}
_UPDATES = 4
VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("full adjoint", _EQUAL | {"unroll": NUM_STEPS}),
    "truncated": Variant(f"last {TRUNCATION} steps", _EQUAL | _LAST),
    "coarse": Variant(f"last {TRUNCATION}, 10 steps before them in place of 47", {"times": COARSE} | _LAST),
    "reused": Variant(f"last {TRUNCATION}, {_UPDATES} updates on a path", _EQUAL | _LAST, _UPDATES),
    "both": Variant(
        f"last {TRUNCATION}, 10 steps before them, {_UPDATES} updates on a path",
        {"times": COARSE} | _LAST,
        _UPDATES,
    ),
    "half": Variant(f"last {TRUNCATION}, paths in bfloat16", _EQUAL | _LAST, half_precision=True),
}


def objective_of(variant: Variant, drift: Drift, reward: Reward, cost_weight: float) -> Objective:
    """The objective of a variant.

    With paths in half precision, rows are prepared with a drift that casts parameters and state, and all else is of the
    drift as it is: the base, through which the lean adjoint goes, and the regression.
    """

    def objective(rolled_out: Drift) -> Objective:
        return gft.objectives.adjoint_matching(
            rolled_out, reward, cost_weight=cost_weight, base_drift=drift, **variant.options
        )

    exact = objective(drift)
    return exact._replace(prepare=objective(in_bfloat16(drift)).prepare) if variant.half_precision else exact


def in_bfloat16(drift: Drift) -> Drift:
    """The drift on parameters and positions cast to bfloat16; times keep their precision."""

    def cast(params: Any, t: jax.Array, x: jax.Array, cond: Any = None, /) -> jax.Array:
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        return drift(half, t, x.astype(jnp.bfloat16), cond)

    return cast
