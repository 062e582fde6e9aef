"""Average velocities, the drifts of two times: how they are made and called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gft_jax.drifts.base import evaluate
from gft_jax.types import Drift, TwoTimeDrift

_NAMES = ("params", "t", "s", "x", "cond")
_REMEDY = (
    "give the network a second time without effect at the start (two_times=True for those of gft_jax.networks, "
    "gft_jax.networks.SecondTime in your own), make its parameters of the pretrained ones by "
    "gft_jax.networks.two_time_params, and a drift of it by gft_jax.drifts.two_times(from_linen(network))"
)


def two_times(drift: Drift) -> TwoTimeDrift:
    """The two-time drift of a model that takes the second time as a keyword argument, ``model(t, x, cond, s=s)``::

        network = gft.networks.SiT.preset("S/2", two_times=True)
        drift = gft.drifts.two_times(gft.drifts.from_linen(network))  # from_nnx and from_equinox likewise
        params = gft.networks.two_time_params(base_params, network.init(key, t, x)["params"])

    A function ``(params, t, s, x, cond=None)`` of your own is a two-time drift as it is.

    Args:
        drift: what `from_linen`, `from_nnx`, `from_equinox` or `from_function` made of the model; for combinators of
            drifts see `lifted`.

    Raises:
        ValueError: for a drift that passes no second time on; at the call, if the model takes none.
    """
    if not _binds(drift, *_NAMES[:2], *_NAMES[3:], s=None):
        raise ValueError(
            f"this drift takes {inspect.signature(drift)} and passes no second time on: take what from_linen, "
            "from_nnx, from_equinox or from_function made of the model, and apply combinators afterwards, by "
            "gft_jax.drifts.lifted."
        )
    return functools.partial(_with_keyword, drift)


def _with_keyword(drift: Any, params: Any, t: Array, s: Array, x: Array, cond: Any = None, /) -> Array:
    return drift(params, t, x, cond, s=s)


def lifted(combinator: Callable[[Drift], Drift], drift: TwoTimeDrift) -> TwoTimeDrift:
    """A combinator of drifts applied to a two-time drift, which is a drift for each second time::

        drift = gft.drifts.lifted(gft.drifts.in_precision, drift)
        drift = gft.drifts.lifted(lora.on_activations, drift)

    For those that leave time alone: `in_precision`, `rematerialised`, `in_data_units`, low-rank adaptation, guidance.

    Args:
        combinator: a drift -> a drift.
        drift: the average velocity.

    Raises:
        ValueError: for a drift without a second time; what the combinator refuses.
    """
    check_two_times(drift)
    combinator(instantaneous(drift))  # what it refuses, it refuses here

    def at_both(params: Any, t: Array, s: Array, x: Array, cond: Any = None, /) -> Array:
        def at_s(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
            return drift(params, t, s, x, cond)

        return combinator(at_s)(params, t, x, cond)

    return at_both


def instantaneous(drift: TwoTimeDrift) -> Drift:
    """The velocity ``v(t, x) = u(t, t, x)`` of an average velocity: a drift for samplers, metrics, likelihoods.

    Raises:
        ValueError: for a drift without a second time.
    """
    check_two_times(drift)
    return functools.partial(_at_one_time, drift)


def _at_one_time(drift: TwoTimeDrift, params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
    return drift(params, t, t, x, cond)


def evaluate_average(
    drift: TwoTimeDrift,
    params: Any,
    t: ArrayLike,
    s: ArrayLike,
    x: Float[Array, "batch *event"],
    cond: Any = None,
) -> Float[Array, "batch *event"]:
    """Average velocity ``[batch, *event]`` of a two-time drift: where objectives and samplers call one.

    Times and dtypes are treated as by `evaluate`.

    Args:
        drift: the average velocity.
        params: its parameters.
        t: flow time in [0, 1] at which the flow is at x, a scalar or ``[batch]``.
        s: flow time in [t, 1] up to which is averaged, likewise.
        x: positions ``[batch, *event]``.
        cond: condition of the rows, a pytree of ``[batch, ...]``, or None.

    Raises:
        ValueError: if a time is neither a scalar nor ``[batch]``, s lies before t (where their values are known), or
            the output of the drift is not of the shape of x.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    starts, ends = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
    for name, times in (("t", starts), ("s", ends)):
        if times.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"{name} must be a scalar or have shape {x.shape[:1]}, one time for each row of x of shape {x.shape}; "
                f"got shape {times.shape}."
            )
    # Compared as the drift gets them: one number in two precisions is one time.
    known = not (isinstance(t, Tracer) or isinstance(s, Tracer))
    if known and np.any(np.asarray(s, dtype) < np.asarray(t, dtype)):
        raise ValueError(
            f"an average velocity runs from t to a later time s, got s={s} before t={t}: for the way back, from data "
            "to noise, integrate gft_jax.drifts.instantaneous(drift) by gft_jax.sampling.sample_ode."
        )
    ends = jnp.broadcast_to(ends, x.shape[:1])

    def at_s(params: Any, t: Array, x: Array, cond: Any = None, /) -> Array:
        return drift(params, t, ends, x, cond)

    return evaluate(at_s, params, starts, x, cond)


def check_two_times(drift: Any) -> None:
    """Refuses a drift that is not called as ``(params, t, s, x, cond)``.

    Raises:
        ValueError: for a drift of one time, with the remedy.
    """
    if not callable(drift):
        raise ValueError(
            f"a two-time drift is a function (params, t, s, x, cond), got {type(drift).__name__}."
        )
    # A drift of one time with an argument more would take s for x.
    if not _binds(drift, *_NAMES) or list(inspect.signature(drift).parameters)[2:3] == ["x"]:
        raise ValueError(
            f"this drift takes {inspect.signature(drift)}, and an average velocity takes (params, t, s, x, cond): it "
            f"has no second time. To make one, {_REMEDY}."
        )


def _binds(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> bool:
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError:
        return False
    return True
