"""Low-rank adaptation: what is trained are factors of updates, beside one copy of the pretrained parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array

from gft_jax.networks.leaf_names import named_leaves
from gft_jax.networks.lora.activations import beside_kernels, run_adapted
from gft_jax.networks.lora.factors import (
    Difference,
    Factors,
    Settings,
    check_factors,
    checked_settings,
    initial,
    kernels_of,
    update_of,
)
from gft_jax.networks.second_time import NAME as SECOND_TIME
from gft_jax.types import Adapter, Drift, Params


class LoRAParams(NamedTuple):
    """Parameters of an adapted drift, as `LowRank.on_activations` and `LowRank.by_merging` make it; a drift without
    adapters takes what `LowRank.merge` makes of them."""

    base: Any
    """Pretrained parameters."""
    adapters: Any
    """Factors of the updates, and differences of what is trained whole, by the name of the parameter."""


class LowRank(NamedTuple):
    """Low-rank adaptation of some kernels of a model, as pure functions."""

    settings: Settings
    """What it was made of."""
    adapter: Adapter
    """For `gft_jax.finetuner`: the trained parameters are the adapters, the drift takes `LoRAParams`."""
    on_activations: Callable[[Drift], Drift]
    """Makes a drift of linen modules one that also takes `LoRAParams`: ``y = W x + alpha / rank * B (A x)`` in each
    layer. No product A B is made, and no gradient of a kernel. With other parameters it is the drift given; adapters
    alone are refused. An adapter whose layer is not called changes nothing: see ``unused``."""
    by_merging: Callable[[Drift], Drift]
    """The same for any drift (nnx, equinox, ...): with `LoRAParams` it is the drift at the merged parameters, which are
    in float32 at least, so that small updates of a bfloat16 base count; a network that computes in bfloat16 rounds them
    there. On the way to the gradient of the factors that of each adapted kernel is made."""
    unused: Callable[..., list[str]]
    """``(drift, base_params, t, x, cond=None)`` -> names of the adapted kernels whose adapters have no part in the
    velocity of an adapted drift at such arguments; traced, not computed. Give a condition where the network takes
    one: what is named then is no part of the network, or of a branch that is not taken."""
    merge: Callable[[Params, Any], Params]
    """``(base_params, adapters)`` -> parameters ``W + alpha / rank * A B`` for the drift without adapters, computed in
    float32 at least and returned in the dtypes of the base: in a bfloat16 one an update below 1 / 256 of its parameter
    is lost or rounded to that; to keep it, merge into ``gft_jax.drifts.cast(base_params, jnp.float32)``."""
    unmerge: Callable[[Params, Any], Params]
    """``(merged, adapters)`` -> the base again, to rounding."""


def low_rank(
    patterns: Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    stacked: Sequence[str] = (),
    parts: Mapping[str, int] | None = None,
    whole: Sequence[str] = (),
) -> LowRank:
    """Low-rank adaptation (LoRA) of the kernels that patterns name::

        lora = low_rank(["*/qkv/kernel", "*/proj/kernel"], rank=8, alpha=16)
        drift = lora.on_activations(from_linen(module))
        tuner = gft.finetuner(gft.objectives.gradual(drift), optimizer, cooling, adapter=lora.adapter)
        runner = gft.parallel.single_device(tuner)
        state = runner.init(key, base_params)
        state, info = runner.step(state, base_params, batch)
        exported = lora.merge(base_params, state.averaged_params)

    A kernel W ``[*inputs, outputs]``, of a dense layer or a convolution, becomes ``W + alpha / rank * A B`` with A
    ``[*inputs, rank]`` and B ``[rank, outputs]``. A starts at N(0, 1 / size of the inputs), B at zero.

    What is trained, averaged, saved in checkpoints and moved by the optimiser are A and B alone. The base is one
    copy, the argument ``base_params`` of the step: the student's drift is given it with the adapters, as `LoRAParams`,
    and no gradient is taken of it; objectives that regress on the base (gradual, terminal, adjoint matching, ...)
    evaluate the same drift with ``base_params`` as they are, which means adapters off, and is the pretrained drift bit
    for bit. So is, as long as B is zero, that with the adapters, since what they add is zero; a compiler that fuses the
    longer program in another way may round it in another way too (by 3e-7 in a U-Net on CPU; perceptrons and
    transformers were equal). Samplers take ``LoRAParams(base_params, adapters)``, or the merged parameters.

    A leaf with two dimensions is a matrix, and one with more a kernel of a convolution, whose last axis are the
    outputs. Where the first axis are the outputs instead, as in equinox, the factors change their parts: the update
    has the rank all the same for matrices; kernels of convolutions are cut behind the wrong axis, which limits the
    update in another way. Embedding tables are matrices too, and go by merging alone.

    Args:
        patterns: which kernels, by the names of the leaves such as ``blocks_0/qkv/kernel``, as in a shell: ``*`` stands
            for any characters, ``/`` included. Of what they match, vectors (biases, scales) stay as they are.
        rank: r >= 1, at most the smaller side of each of the kernels.
        alpha: positive; the update is scaled by ``alpha / rank``, so that a learning rate serves several ranks. By
            default the rank.
        stacked: patterns of leaves with a leading axis of layers, as ``flax.linen.scan`` makes them: each layer gets
            factors of its own.
        parts: by pattern, the number of equal parts of the outputs, one behind the other, that get factors of their
            own; otherwise they share A. ``{"*/qkv/kernel": 3}`` tells queries, keys and values apart where they follow
            one another, as in `gft_jax.networks.SiT`. In `gft_jax.networks.UNet` the outputs of one head follow those
            of another, each with its query, key and value: its ``num_heads`` tells the heads apart.
        whole: patterns of parameters of any shape that are trained whole: a difference from the base, zero at first, is
            added to each. For what is small and no kernel, such as the embeddings of classes: a base that has not seen
            a class has no embedding of it, and adapters of kernels alone cannot tell it from the others.

    Raises:
        ValueError: for settings out of range; when they meet parameters: if these are None, a pattern matches nothing
            or no kernel, the rank is too large, parts do not divide the outputs, or a second time that has no effect
            yet (`gft_jax.networks.two_time_params`) is left out; from an adapted drift, if it is
            given adapters alone; from the drift on activations, if a kernel is not one of a dense layer or a
            convolution of linen, or has an axis of layers that ``stacked`` does not name.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", arXiv:2106.09685, section 4.1. Ours has
    matrices that act from the right, and the variance of A depends on the number of inputs.
    """
    settings = checked_settings(patterns, rank, alpha, stacked, parts, whole)

    def init(key: Any, base_params: Params) -> dict[str, Factors | Difference]:
        adapters = initial(settings, key, base_params)
        _check_second_time(base_params, adapters)
        return adapters

    def apply(adapters: Any, base_params: Params) -> LoRAParams:
        if base_params is None:
            kernels_of(settings, base_params)
        return LoRAParams(jax.lax.stop_gradient(base_params), adapters)

    def on_activations(drift: Drift) -> Drift:
        def adapted(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
            if not isinstance(params, LoRAParams):
                _refuse_adapters_alone(params)
                return drift(params, t, x, cond, **second_time)
            check_factors(settings, params.base, params.adapters)
            factors = {k: part for k, part in params.adapters.items() if isinstance(part, Factors)}
            base = _added(params.base, _differences(params.adapters), 1.0)
            joined = beside_kernels(base, factors, settings.scale)
            return run_adapted(lambda: drift(joined, t, x, cond, **second_time))

        return adapted

    def by_merging(drift: Drift) -> Drift:
        def adapted(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
            if isinstance(params, LoRAParams):
                params = _shifted(settings, *params, 1.0)
            else:
                _refuse_adapters_alone(params)
            return drift(params, t, x, cond, **second_time)

        return adapted

    def unused(drift: Drift, base_params: Params, t: Any, x: Any, cond: Any = None, /) -> list[str]:
        def velocity(adapters: Any, base_params: Params, t: Array, x: Array, cond: Any) -> Array:
            return drift(LoRAParams(base_params, adapters), t, x, cond)

        adapters = jax.eval_shape(init, jax.random.key(0), base_params)
        program = jax.make_jaxpr(velocity)(adapters, base_params, t, x, cond).jaxpr
        _, needed = dce_jaxpr(program, [True] * len(program.outvars))
        treedef = jax.tree.structure(adapters)
        by_name = jax.tree.unflatten(treedef, needed[: treedef.num_leaves])
        return [name for name, parts in by_name.items() if not parts[-1]]

    def merge(base_params: Params, adapters: Any) -> Params:
        return _in_dtypes_of(base_params, _shifted(settings, base_params, adapters, 1.0))

    def unmerge(merged: Params, adapters: Any) -> Params:
        return _in_dtypes_of(merged, _shifted(settings, merged, adapters, -1.0))

    return LowRank(settings, Adapter(init, apply), on_activations, by_merging, unused, merge, unmerge)


def _check_second_time(base_params: Params, adapters: Mapping[str, Any]) -> None:
    """Refuses to leave a second time as it is that has no effect: what is trained could never depend on it."""
    for name, leaf in named_leaves(base_params).items():
        is_last = f"/{name}".endswith(f"/{SECOND_TIME}/last/kernel")
        if is_last and name not in adapters and not isinstance(leaf, Tracer) and not jnp.any(leaf):
            raise ValueError(
                f"{name} is zero, so that the second time has no effect, and no pattern reaches it: add "
                f'"{name}" to whole, or "{name.removesuffix("last/kernel")}*" for all of the second time'
            )


def _refuse_adapters_alone(params: Any) -> None:
    if isinstance(params, Mapping) and any(
        isinstance(part, Factors | Difference) for part in params.values()
    ):
        raise ValueError(
            "an adapted drift was given adapters alone: give it LoRAParams(base_params, adapters), or parameters "
            "without adapters"
        )


def _in_dtypes_of(params: Params, changed: Params) -> Params:
    return jax.tree.map(lambda leaf, new: new if new is leaf else new.astype(leaf.dtype), params, changed)


def _shifted(settings: Settings, params: Params, adapters: Any, sign: float) -> Params:
    """Parameters with all updates added."""
    check_factors(settings, params, adapters)
    kernels = kernels_of(settings, params)
    products = {name: update_of(settings, kernel, adapters[name]) for name, kernel in kernels.items()}
    return _added(params, products | _differences(adapters), sign)


def _differences(adapters: Mapping[str, Any]) -> dict[str, Array]:
    return {name: part.delta for name, part in adapters.items() if isinstance(part, Difference)}


def _added(params: Params, updates: Mapping[str, Array], sign: float) -> Params:
    """Parameters with the updates of some of them added, those in float32 at least."""

    def added(leaf: Any, update: Array | None) -> Any:
        if update is None:
            return leaf
        dtype = jnp.promote_types(leaf.dtype, update.dtype)
        return leaf.astype(dtype) + sign * update.astype(dtype)

    leaves = [added(leaf, updates.get(name)) for name, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
