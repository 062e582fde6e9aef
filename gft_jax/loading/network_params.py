"""Parameters of a network by the shape of its samples: fresh ones, and whether given ones are of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from gft_jax import networks
from gft_jax.types import Params


def init_params(module: linen.Module, key: Any, event_shape: tuple[int, ...]) -> Params:
    """Random parameters of a drift network for samples of a shape."""
    widths, cond = getattr(module, "cond_features", None), None
    if widths is not None:
        null = networks.null_condition(getattr(module, "num_classes", None), widths)
        cond = jax.tree.map(lambda row: jnp.asarray(row)[None], null)
    return jax.jit(module.init)(key, jnp.zeros(1), jnp.zeros((1, *event_shape)), cond)["params"]


def check_params(
    params: Params, module: linen.Module, event_shape: tuple[int, ...], *, with_dtypes: bool = True
) -> None:
    """Refuses parameters that are not those of a network.

    Args:
        params: the parameters.
        module: the network.
        event_shape: shape of one sample.
        with_dtypes: whether they must have the dtype too in which the network makes its parameters.

    Raises:
        ValueError: naming the first that is missing, too many, or of another shape or dtype.
    """

    def told(leaf: Any) -> str:
        return f"{jnp.result_type(leaf) if with_dtypes else 'shape '}{jnp.shape(leaf)}"

    like = jax.eval_shape(lambda: init_params(module, jax.random.key(0), event_shape))
    expected, given = (
        {jax.tree_util.keystr(path): told(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (like, params)
    )
    differing = sorted(
        name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
    )
    if differing:
        name = differing[0]
        raise ValueError(
            f"parameters do not fit {type(module).__name__} for samples of shape {event_shape}: params{name} is "
            f"{given.get(name, 'missing')}, expected {expected.get(name, 'none')}; {len(differing)} differ in all"
            + (" (the dtype is the network's param_dtype)" if with_dtypes else "")
        )
