"""Drifts of normalised events, such as scaled latents, as drifts of the events themselves, and back."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from gft_jax.data.normalisation import Normalisation, checked
from gft_jax.drifts.base import evaluate
from gft_jax.types import Drift, Params


def in_data_units(drift: Drift, normalisation: Normalisation) -> Drift:
    """The same flow in the units of the data: ``v(t, x) = scale u(t, (x - mean) / scale)``, u that of normalised z.

    Exact at every t and on every path, since ``x = scale z + mean`` is one change of variables for all t: from
    ``x0 = scale z0 + mean`` the flow of v ends on ``scale z1 + mean``, `gft_jax.data.restored` samples. So where u
    starts from N(0, I), v starts from N(mean, scale^2), and data pairs with rows of that law in training. To train on
    raw data with the source N(0, I) instead, normalise the data (`gft_jax.data.normalised`) and keep u.

    Latents ``z = 0.18215 x`` are ``Normalisation(0.0, 1 / 0.18215)``, and ``z = (x - shift) factor`` is
    ``Normalisation(shift, 1 / factor)``; mean and scale may be arrays of a value for each channel.

    Args:
        drift: velocity u of normalised events.
        normalisation: mean and scale, which broadcast against an event.

    Raises:
        ValueError: at the call, if mean or scale is not finite, scale not positive, or they do not broadcast against
            an event.
    """

    def restored(params: Params, t: Array, x: Array, cond: Any = None, /) -> Array:
        mean, scale = map(jnp.asarray, checked(normalisation, x.shape[1:], x.dtype))
        return scale * evaluate(drift, params, t, (x - mean) / scale, cond)

    return restored


def in_normalised_units(drift: Drift, normalisation: Normalisation) -> Drift:
    """The inverse of `in_data_units`: ``u(t, z) = v(t, scale z + mean) / scale``, v the drift of the data as they are.

    Args:
        drift: velocity v of events in the units of the data.
        normalisation: mean and scale, which broadcast against an event.

    Raises:
        ValueError: at the call, as `in_data_units`.
    """

    def normalised(params: Params, t: Array, z: Array, cond: Any = None, /) -> Array:
        mean, scale = map(jnp.asarray, checked(normalisation, z.shape[1:], z.dtype))
        return evaluate(drift, params, t, scale * z + mean, cond) / scale

    return normalised
