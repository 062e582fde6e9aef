"""How flow times are drawn in training: each sampler maps one typed key to one scalar in [0, 1]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gft_jax.types import TimeSampler


def uniform(start: float = 0.0, end: float = 1.0) -> TimeSampler:
    """Uniform times on [start, end).

    Bounds inside (0, 1) keep training away from the ends of time, where some paths have unbounded
    velocities (Brownian bridge: both ends; variance preserving: t = 1).

    Raises:
        ValueError: unless 0 <= start < end <= 1.
    """
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"uniform times need 0 <= start < end <= 1, got start={start}, end={end}")

    def sample(key: Key[Array, ""]) -> Float[Array, ""]:
        return jax.random.uniform(key, minval=start, maxval=end)

    return sample


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """Times ``t = sigmoid(z)``, ``z ~ N(mean, std^2)``: more often in the middle of the flow than at its ends.

    A positive ``mean`` moves the density towards data (t = 1). The ends themselves, that rounding may give, are
    left out.

    Source: Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis",
    arXiv:2403.03206, section 3.1.

    Raises:
        ValueError: unless std > 0.
    """
    if not std > 0.0:
        raise ValueError(f"logit-normal times need std > 0, got {std}")

    def sample(key: Key[Array, ""]) -> Float[Array, ""]:
        t = jax.nn.sigmoid(mean + std * jax.random.normal(key))
        rounding = jnp.finfo(t.dtype).eps
        return jnp.clip(t, rounding, 1.0 - rounding)

    return sample


def beta(a: float, b: float, start: float = 0.0, end: float = 1.0) -> TimeSampler:
    """Times ``t = start + (end - start) s`` with ``s`` from Beta(a, b), density ``~ s^(a - 1) (1 - s)^(b - 1)``.

    On (0, 1), ``beta(1, 2)`` has the density ``2 (1 - t)`` and leans towards noise, ``beta(2, 1)`` has ``2 t`` and
    leans towards data. Bounds inside (0, 1) serve as in `uniform`: the law is squeezed between them, not cut off.
    The bounds themselves, that rounding may give, are left out.

    Raises:
        ValueError: unless both a and b are > 0, and 0 <= start < end <= 1.
    """
    if not (a > 0.0 and b > 0.0):
        raise ValueError(f"beta times need a > 0 and b > 0, got a={a}, b={b}")
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"beta times need 0 <= start < end <= 1, got start={start}, end={end}")

    def sample(key: Key[Array, ""]) -> Float[Array, ""]:
        t = start + (end - start) * jax.random.beta(key, a, b)
        rounding = jnp.finfo(t.dtype).eps
        return jnp.clip(t, start + rounding, end - rounding)

    return sample


def draw_times(sampler: TimeSampler, keys: Key[Array, "rows"], dtype: jnp.dtype) -> Float[Array, "rows"]:
    """One time per row from the row's own key, in the dtype of the samples.

    Raises:
        ValueError: if the sampler returns anything but a scalar per key.
    """
    times = jax.vmap(sampler)(keys)
    if times.shape != keys.shape:
        raise ValueError(
            f"a time sampler maps one key to one scalar; {keys.shape[0]} keys gave the shape {times.shape}"
        )
    return times.astype(dtype)
