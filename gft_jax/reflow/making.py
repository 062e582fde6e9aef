"""What pairs are made by: a model's flow from drawn sources, by the numbers of the rows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.couplings.base import split_arrays
from gft_jax.pairing import Source
from gft_jax.types import Params

Sample = Callable[[Any, Array, Any], Array]
"""``(params, x0, cond)`` -> samples like x0, such as ``sample_ode(drift, params, x0, cond=cond).x``."""

Make = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Numbers of rows -> x0 and x1 ``[rows, *event]``, as files keep them."""


def maker(source: Source, sample: Sample, params: Params, cond: Any, seed: int) -> Make:
    """Pair i of a model from seed, i, model and condition alone, under jit."""
    arrays, static = split_arrays(source)
    key = jax.random.key(seed)

    @jax.jit
    def ends(
        key: Key[Array, ""], arrays: Any, rows: Array, params: Params, row_cond: Any
    ) -> tuple[Array, Array]:
        x0, _ = eqx.combine(arrays, static)(jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))
        return _kept(x0), _kept(sample(params, x0, row_cond))

    def make(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x0, x1 = ends(key, arrays, rows, params, jax.tree.map(lambda leaf: leaf[rows], cond))
        return np.asarray(x0), np.asarray(x1)

    return make


def ends_like(source: Source, sample: Sample, params: Params, cond: Any) -> list[jax.ShapeDtypeStruct]:
    """One row of both ends, traced.

    Raises:
        ValueError: for a source with conditions, or samples of another shape than x0.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    x0, source_cond = jax.eval_shape(source, keys)
    if source_cond is not None:
        raise ValueError("the source draws conditions of its own, which pairs do not keep: give one without.")
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), cond)
    x1 = jax.eval_shape(sample, params, x0, row)
    if getattr(x1, "shape", None) != x0.shape:
        raise ValueError(
            f"sample must return one sample for each x0, an array of shape {x0.shape}, got "
            f"{getattr(x1, 'shape', type(x1).__name__)}: of a sampler's result give its field x."
        )
    return [jax.eval_shape(_kept, end) for end in (x0, x1)]


def check_finite(start: int, *ends: np.ndarray) -> None:
    """Refuses a chunk of pairs that are not numbers.

    Raises:
        ValueError: saying which they are, counted from ``start``.
    """
    for name, rows in zip(("sources", "samples"), ends, strict=True):
        bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} {name} of a chunk of {len(rows)} are not finite, the first of them pairs "
                f"{(start + bad[:5]).tolist()}: look at the model's samples there. The pairs before are kept."
            )


def _kept(rows: Array) -> Array:
    """In a dtype that NumPy's files hold: half precision in float32."""
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
