"""Drifts from the models of Flax (linen or nnx), of Equinox, and from plain functions.

Without a condition a model is called as ``(t, x)`` if it allows that, else as ``(t, x, None)``; with one as
``(t, x, cond)``, and a model that takes two arguments alone then raises an error rather than ignoring the
condition. A model of two times has a keyword argument s besides, which `gft_jax.drifts.two_times` gives it. An
argument s in the place of the condition is that condition if it must be given, and a second time if it has a default.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
from flax import linen, nnx
from jaxtyping import Array

from gft_jax.types import Drift


def _caller(call: Callable[..., Any]) -> Callable[..., Any]:
    """How to call a model whose signature is that of ``call``: with or without a condition, and a second time."""
    signature = inspect.signature(call)

    def accepts(num_arguments: int, **keywords: Any) -> bool:
        try:
            signature.bind(*range(num_arguments), **keywords)
        except TypeError:
            return False
        return True

    at_one_time, at_both = ((accepts(2, **s), accepts(3, **s)) for s in ({}, {"s": None}))
    if at_one_time[0] and at_both == (True, False):
        at_one_time = (True, False)  # a condition would be taken for the second time
    if not any((*at_one_time, *at_both)):
        raise ValueError(f"A drift is called as (t, x) or as (t, x, cond), but this one takes {signature}.")

    def call_model(model: Callable[..., Any], t: Any, x: Any, cond: Any, **second_time: Any) -> Any:
        takes_none, takes_one = at_both if second_time else at_one_time
        if second_time and not (takes_none or takes_one):
            raise ValueError(
                f"A second time was given to a model that takes {signature}. Give it a keyword argument s that changes "
                "nothing at the start (gft_jax.networks.SecondTime), and make its parameters of the pretrained ones by "
                "gft_jax.networks.two_time_params."
            )
        if not (takes_none or takes_one):
            raise ValueError(
                f"A model that takes {signature} was called without its second time s: make a drift of two times of it "
                "by gft_jax.drifts.two_times, and of that its velocity by gft_jax.drifts.instantaneous."
            )
        if cond is None and takes_none:
            return model(t, x, **second_time)
        if not takes_one:
            raise ValueError(f"A condition was given to a drift that takes none: it takes {signature}.")
        return model(t, x, cond, **second_time)

    return call_model


def from_linen(
    module: linen.Module, variables: Mapping[str, Any] | None = None, **apply_kwargs: Any
) -> Drift:
    """Drift of a Flax linen module with ``__call__(t, x, cond)``; its parameters are the collection "params".

    So ``drift(module.init(key, t, x, cond)["params"], t, x, cond)``, without the outer ``{"params": ...}``.
    The module is always run for inference: its other collections never change, and no random numbers are
    given to it. A module with dropout or batch statistics must be told so by its own argument, mostly
    ``train=False`` or ``deterministic=True``; otherwise linen raises its InvalidRngError or
    ModifyScopeVariableError.

    Args:
        module: the module, unbound.
        variables: its other collections, e.g. ``{"batch_stats": ...}``; frozen, and kept inside the drift.
        **apply_kwargs: passed on to ``module.apply``, e.g. ``train=False``.

    Raises:
        ValueError: if ``variables`` holds "params" (they travel as an argument of the drift), or if
            ``mutable`` is given (a drift returns a velocity alone).
    """
    if variables is not None and "params" in variables:
        raise ValueError(
            f'variables must not hold "params", got the collections {sorted(variables)}: parameters are the '
            "first argument of the drift. Pass the other collections alone."
        )
    if "mutable" in apply_kwargs:
        raise ValueError(
            f"mutable={apply_kwargs['mutable']!r} makes the module return more than a velocity; a drift is pure."
        )
    collections = dict(variables or {})
    method = apply_kwargs.get("method", "__call__")
    call = _caller(getattr(module, method) if isinstance(method, str) else functools.partial(method, module))

    def drift(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
        def apply(*inputs: Any, **second_time: Any) -> Any:
            variables = {"params": params, **collections}
            return module.apply(variables, *inputs, **second_time, **apply_kwargs)

        return call(apply, t, x, cond, **second_time)

    return drift


def from_nnx(model: nnx.Module) -> tuple[Drift, Any]:
    """Drift and parameters of a Flax nnx model with ``__call__(t, x, cond)``.

    The parameters are the model's ``nnx.Param`` variables as an ``nnx.State``: a pytree that optax takes. The
    rest of its state (batch statistics, random streams) is frozen inside the drift. The drift runs a copy in
    evaluation mode (``model.eval()``: no dropout, running averages); the model itself is left as it is.
    """
    copy = nnx.clone(model)
    copy.eval()
    graph, params, rest = nnx.split(copy, nnx.Param, ...)
    call = _caller(model.__call__)

    def drift(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
        return call(nnx.merge(graph, params, rest), t, x, cond, **second_time)

    return drift, params


def from_equinox(module: Callable[..., Any]) -> tuple[Drift, Any]:
    """Drift and parameters of an Equinox module that maps *one* example: ``module(t, x, cond)``.

    The module sees t as a scalar, x as ``[*event]`` and cond without its batch axis, and is vmapped over the
    batch. The parameters are the module with every leaf that is no floating-point array replaced by None (a
    pytree that optax takes); all else is frozen inside the drift. The module is put in inference mode (no
    dropout, no key needed). Modules that return a state besides their output, such as ``eqx.nn.BatchNorm``,
    are not supported.
    """
    params, static = eqx.partition(eqx.nn.inference_mode(module), eqx.is_inexact_array)
    call = _caller(module)

    def drift(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
        model = eqx.combine(params, static)
        each = jax.vmap(lambda t, x, cond, second_time: call(model, t, x, cond, **second_time))
        return each(t, x, cond, second_time)

    return drift, params


def from_function(function: Callable[..., Any]) -> Drift:
    """Drift without parameters: ``function(t, x)`` or ``function(t, x, cond)`` on whole batches.

    The drift ignores its parameters; pass None or ``()``.

    Raises:
        ValueError: if the function can be called in neither way.
    """
    call = _caller(function)

    def drift(params: Any, t: Array, x: Array, cond: Any = None, /, **second_time: Array) -> Array:
        return call(function, t, x, cond, **second_time)

    return drift
