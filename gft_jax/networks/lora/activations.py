"""Low-rank updates beside the layers of linen modules: no product of the factors, and no gradient of a kernel."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array

from gft_jax.networks.lora.factors import Factors

KERNEL, A, B = "kernel", "lora_a", "lora_b"
"""Names of the parameters of a layer: its own, and the factors that lie beside it while the module runs."""


def beside_kernels(base_params: Any, adapters: Mapping[str, Factors], scale: float) -> Any:
    """The parameters of a linen module with the factors A and ``scale * B`` beside the kernels that they adapt.

    As parameters of the layer they go wherever the kernel does, also through ``nn.scan`` and ``nn.remat``, and through
    ``nn.jit``, which would keep a scale that is no parameter from one call to the next.

    Raises:
        ValueError: if one of them is not the kernel of a layer in nested dictionaries.
    """
    joined = base_params
    for name, factors in adapters.items():
        *scopes, leaf = name.split("/")
        if leaf != KERNEL:
            raise ValueError(
                f"{name} is not the kernel of a linen layer: narrow the patterns, or adapt it by merging. If it is a "
                "bias or a scale with a leading axis of layers, name it by stacked, and it is passed over"
            )
        joined = _with(joined, scopes, {A: factors.a, B: scale * factors.b}, name)
    return joined


def _with(tree: Any, scopes: list[str], new: dict[str, Array], name: str) -> Any:
    if not isinstance(tree, dict | FrozenDict):  # not the states of nnx, which are mappings too
        raise ValueError(
            f"{name} does not lie in nested dictionaries, so it is not of a linen module: adapt it by merging"
        )
    if not scopes:
        return {**tree, **new}
    return {**tree, scopes[0]: _with(tree[scopes[0]], scopes[1:], new, name)}


def run_adapted(run: Callable[[], Array]) -> Array:
    """What ``run`` returns, where layers of linen modules that hold factors add ``B (A x)`` to their output.

    Raises:
        ValueError: where a layer, or another module with a kernel of its own, cannot be adapted in this way.
    """
    layers: set[tuple[str, ...]] = set()
    others: dict[tuple[str, ...], str] = {}

    def with_update(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        module = context.module
        if context.method_name != "__call__" or not module.has_variable("params", A):
            return call(*args, **kwargs)
        if not (hasattr(module, "features") and hasattr(module, "use_bias")):
            others[module.path] = type(module).__name__
            return call(*args, **kwargs)
        layers.add(module.path)
        kernel, a, b = (module.get_variable("params", name) for name in (KERNEL, A, B))
        _check_layer(module, kernel, a, b)
        narrow = module.clone(features=a.shape[-1], use_bias=False, parent=None, name=None)
        inner = jnp.asarray(narrow.apply({"params": {KERNEL: a}}, *args, **kwargs))
        parts = a.shape[-1] // b.shape[-2]
        inner = inner.reshape(*inner.shape[:-1], parts, -1)
        b = b.reshape(b.shape[0], parts, -1).astype(inner.dtype)
        output = call(*args, **kwargs)
        update = jnp.einsum("...pr,rpo->...po", inner, b).reshape(output.shape)
        return output + update.astype(output.dtype)

    with nn.intercept_methods(with_update):
        output = run()
    for path, kind in others.items():
        # A module that shares the scope of a layer sees its factors, and calls the layer.
        if path not in layers:
            raise ValueError(
                f"{kind} {'/'.join(path)} has a kernel with adapters and is no dense or convolution layer: adapt it by "
                "merging, or narrow the patterns"
            )
    return output


def _check_layer(module: nn.Module, kernel: Array, a: Array, b: Array) -> None:
    where = "/".join(module.path)
    what = f"{type(module).__name__} {where}"
    if kernel.shape != (*a.shape[:-1], *b.shape[1:]):
        raise ValueError(
            f"{what} runs with a kernel of shape {kernel.shape}, and its adapters have {a.shape} and {b.shape}: a "
            "kernel with a leading axis of layers, as nn.scan makes it, must be named by stacked, such as "
            f'["{where}/kernel"]'
        )
    if not isinstance(module.features, int) or getattr(module, "transpose_kernel", False):
        raise ValueError(f"{what} does not have its outputs last in its kernel: adapt it by merging")
    if getattr(module, "feature_group_count", 1) != 1 or getattr(module, "mask", None) is not None:
        raise ValueError(f"{what} has groups or a mask: adapt it by merging")
