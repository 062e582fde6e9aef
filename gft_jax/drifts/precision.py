"""Drifts that compute in half precision, and drifts that are evaluated again instead of remembered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from gft_jax.types import Drift, Params


def cast(params: Params, dtype: DTypeLike) -> Params:
    """The pytree with its floating-point arrays in another dtype; integers and keys stay as they are.

    ``cast(base_params, jnp.bfloat16)`` keeps a frozen base in half the memory. Trained parameters belong in float32: an
    update below 1 / 256 of a bfloat16 parameter is lost.

    Raises:
        ValueError: for a dtype that is not of floating-point numbers.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be of floating-point numbers, such as jnp.bfloat16, got {dtype}")

    def of_leaf(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(of_leaf, params)


def in_precision(drift: Drift, dtype: DTypeLike = jnp.bfloat16) -> Drift:
    """The drift computed in another precision: parameters, x and cond are cast at the call, the velocity back again.

    The velocity is in the dtype of x, and in float32 at least, and so is all that is made of it: losses, sums, steps of
    samplers, adjoints. Gradients arrive in the dtype of the parameters given: with float32 ones the optimiser works in
    float32. Parameters that have the dtype already, such as those of a base, are not copied.

    t stays in float32: between 1/2 and 1 bfloat16 has 128 times. The network must embed it and then go on in the dtype
    of x, as those of `gft_jax.networks` do; one that lets float32 features of t meet half-precision ones computes in
    float32 from there on. Objectives pass integer labels, which stay as they are.

    Args:
        drift: the velocity field.
        dtype: of parameters and activations; bfloat16 has the range of float32, and no loss needs to be scaled, while
            float16 overflows above 65504.

    Raises:
        ValueError: for a dtype that is not of floating-point numbers.
    """
    cast((), dtype)

    def rounded(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        velocity = drift(cast(params, dtype), t, cast(x, dtype), cast(cond, dtype))
        return velocity.astype(jnp.promote_types(x.dtype, jnp.float32))

    return rounded


def rematerialised(drift: Drift, policy: Callable[..., bool] | None = None) -> Drift:
    """The drift with the same derivatives, whose intermediate values are computed again in the backward pass.

    Where a derivative is taken through many evaluations, as in `gft_jax.objectives.draft` or a sampler, it holds those
    of one evaluation at a time instead of all, for one more evaluation each. A drift that is evaluated once gains
    nothing by it: a deep network then rematerialises its own blocks (``flax.linen.remat``), and any training step takes
    less with ``num_microbatches`` of `gft_jax.finetuner`.

    Args:
        drift: the velocity field.
        policy: which values are kept nevertheless, of ``jax.checkpoint_policies``: with ``dots_saveable`` no matrix
            product is computed twice. None keeps none.
    """
    return jax.checkpoint(drift, policy=policy)
