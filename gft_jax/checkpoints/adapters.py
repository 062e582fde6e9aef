"""Adapters saved alone: what they are, and the base that they belong to."""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gft_jax.checkpoints.leaves import fingerprint
from gft_jax.checkpoints.params import load_params, params_metadata, save_params
from gft_jax.networks.lora import Difference, Factors, LowRank, low_rank
from gft_jax.networks.lora.factors import check_factors
from gft_jax.types import Params

_KIND = "low-rank adapters"


def save_adapters(
    directory: str | os.PathLike[str],
    lora: LowRank,
    base_params: Params,
    adapters: Mapping[str, Factors | Difference],
) -> None:
    """Write adapters once, without the base: a small part of the size of the model.

    With them go rank, alpha and patterns, and a fingerprint of the base (`gft_jax.checkpoints.fingerprint`).

    Args:
        directory: a directory for them alone, as for `save_params`.
        lora: the adaptation that they are of.
        base_params: the pretrained parameters, as the adapters were trained on them: whole arrays, in a run of several
            processes fetched.
        adapters: trained ones (``state.params``) or their average.

    Raises:
        ValueError: if the adapters are not those of this adaptation of these parameters.
        FileExistsError: as `save_params`, like all else.
    """
    check_factors(lora.settings, base_params, adapters)
    metadata = {
        "kind": _KIND,
        "settings": lora.settings._asdict(),
        "dtypes": {name: [str(factor.dtype) for factor in factors] for name, factors in adapters.items()},
        "base": fingerprint(base_params),
    }
    save_params(directory, dict(adapters), metadata)


def load_adapters(
    directory: str | os.PathLike[str], base_params: Params
) -> tuple[LowRank, dict[str, Factors | Difference]]:
    """The adaptation, and adapters as `save_adapters` has written them, bit for bit, on the default device.

    Args:
        directory: where they are.
        base_params: the pretrained parameters that they belong to.

    Raises:
        FileNotFoundError: if there is nothing, or it was cut short or damaged.
        ValueError: if what is there are no adapters, or they belong to other parameters.
    """
    metadata = params_metadata(directory)
    if metadata.get("kind") != _KIND:
        raise ValueError(f"{directory} holds parameters of another kind: load them with load_params")
    found = fingerprint(base_params)
    if found != metadata["base"]:
        raise ValueError(
            f"the adapters in {directory} belong to a base with the fingerprint {metadata['base'][:16]}..., and "
            f"base_params have {found[:16]}...: give the parameters on which they were trained, in the same dtype and "
            "form (blocks stacked or not)"
        )
    lora = low_rank(**metadata["settings"])
    shapes = jax.eval_shape(lambda base: lora.adapter.init(jax.random.key(0), base), base_params)
    like = {name: _in_dtypes(factors, metadata["dtypes"][name]) for name, factors in shapes.items()}
    return lora, load_params(directory, like)


def _in_dtypes(adapter: Factors | Difference, dtypes: list[str]) -> Factors | Difference:
    leaves, structure = jax.tree.flatten(adapter)
    return jax.tree.unflatten(
        structure,
        [
            jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        ],
    )
