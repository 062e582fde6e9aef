"""Low-rank updates beside the layers of linen modules: no product of the factors, and no gradient of a kernel."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array

from gft_jax.networks.leaf_names import listed
from gft_jax.networks.lora.factors import Factors

KERNEL, A, B = "kernel", "lora_a", "lora_b"
"""Names of the parameters of a layer: its own, and the factors that lie beside it while the module runs."""


def beside_kernels(base_params: Any, adapters: Mapping[str, Factors]) -> Any:
    """The parameters of a linen module with the factors beside the kernels that they adapt.

    As parameters of the layer they go wherever the kernel does, also through ``nn.scan`` and ``nn.remat``.

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
        joined = _with(joined, scopes, {A: factors.a, B: factors.b}, name)
    return joined


def _with(tree: Any, scopes: list[str], new: dict[str, Array], name: str) -> Any:
    if not isinstance(tree, dict | FrozenDict):  # not the states of nnx, which are mappings too
        raise ValueError(
            f"{name} does not lie in nested dictionaries, so it is not of a linen module: adapt it by merging"
        )
    if not scopes:
        return {**tree, **new}
    return {**tree, scopes[0]: _with(tree[scopes[0]], scopes[1:], new, name)}


def run_adapted(scale: float, run: Callable[[], Array], names: Sequence[str], check: bool) -> Array:
    """What ``run`` returns, where layers of linen modules that hold factors add ``scale * B A x`` to their output.

    Raises:
        ValueError: where a layer cannot be adapted in this way; with ``check``, if factors lie beside a kernel that no
            layer has used.
    """
    used: set[tuple[str, ...]] = set()

    def with_update(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        module = context.module
        # A module that shares the scope of a layer sees its parameters, and calls the layer.
        is_layer = hasattr(module, "features") and hasattr(module, "use_bias")
        if context.method_name != "__call__" or not is_layer or not module.has_variable("params", A):
            return call(*args, **kwargs)
        used.add(module.path)
        kernel, a, b = (module.get_variable("params", name) for name in (KERNEL, A, B))
        _check_layer(module, kernel, a, b)
        narrow = module.clone(features=a.shape[-1], use_bias=False, parent=None, name=None)
        inner = narrow.apply({"params": {KERNEL: a}}, *args, **kwargs)
        parts = a.shape[-1] // b.shape[-2]
        inner = inner.reshape(*inner.shape[:-1], parts, -1)
        b = b.reshape(b.shape[0], parts, -1).astype(inner.dtype)
        output = call(*args, **kwargs)
        update = jnp.einsum("...pr,rpo->...po", inner, b).reshape(output.shape)
        return output + (scale * update).astype(output.dtype)

    with nn.intercept_methods(with_update):
        output = run()
    if check:
        unused = [name for name in names if not any(_ends(name, path) for path in used)]
        if unused:
            raise ValueError(
                f"no dense or convolution layer has used {listed(unused)}: adapt them by merging, or narrow the "
                "patterns"
            )
    return output


def _ends(name: str, path: tuple[str, ...]) -> bool:
    scopes = tuple(name.split("/")[:-1])
    return scopes[len(scopes) - len(path) :] == path


def _check_layer(module: nn.Module, kernel: Array, a: Array, b: Array) -> None:
    where = "/".join(module.path)
    what = f"{type(module).__name__} {where}"
    if kernel.shape != (*a.shape[:-1], *b.shape[1:]):
        raise ValueError(
            f"{what} runs with a kernel of shape {kernel.shape}, and its adapters have {a.shape} and {b.shape}: a kernel "
            f'with a leading axis of layers, as nn.scan makes it, must be named by stacked, such as ["{where}/kernel"]'
        )
    if not isinstance(module.features, int) or getattr(module, "transpose_kernel", False):
        raise ValueError(f"{what} does not have its outputs last in its kernel: adapt it by merging")
    if getattr(module, "feature_group_count", 1) != 1 or getattr(module, "mask", None) is not None:
        raise ValueError(f"{what} has groups or a mask: adapt it by merging")
