"""The ratio of two densities from samples, by a probabilistic classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jaxtyping import Array, Float, Key
from scipy import optimize

BATCH_SIZE = 128
_CHECK_EVERY = 25
LEAST_SAMPLES = 20


class DensityRatio(NamedTuple):
    """``log q(x) - log p(x)`` as a function, and how far it is to be trusted."""

    log_ratio: Callable[[Array], Array]
    """``[batch, *event]`` -> ``[batch]``, in nats; differentiable, and a reward when it is given ``(x, cond)``."""
    log_loss: float
    """Of the calibrated classifier on the held-out part, in nats a sample, the two laws counting alike: log 2 = 0.693
    where it cannot tell them apart. A value near 0 says that they do not overlap: no weights can mend that."""
    slope: float
    """Factor by which calibration multiplied the logits: far below 1, the classifier was overconfident."""
    num_steps: int
    """Training steps at which the held-out loss was least."""


class _Classifier(linen.Module):
    hidden: int
    depth: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        h = x.reshape(x.shape[0], -1)
        for _ in range(self.depth):
            h = linen.silu(linen.Dense(self.hidden)(h))
        # A square beside the logits of the network: between normal laws the log-ratio is quadratic.
        return linen.Dense(1)(jnp.concatenate([h, x.reshape(x.shape[0], -1) ** 2], axis=-1))[:, 0]


def fit_density_ratio(
    target: Float[Array | np.ndarray, "num *event"],
    base: Float[Array | np.ndarray, "num_base *event"],
    key: Key[Array, ""],
    *,
    hidden: int = 64,
    depth: int = 2,
    num_steps: int = 1000,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    held_out: float = 0.25,
) -> DensityRatio:
    """Log-ratio of the law of ``target`` over the law of ``base``, from samples of both.

    A network tells the two apart by logistic regression, in batches with as many rows of either; it is kept at the
    step with the least loss on a held-out part (early stopping), and its logits are calibrated there by a slope and
    an offset (Platt). With both laws counting alike the logit is ``log q - log p``, whatever the numbers of samples.

    Where only one of the laws has samples the ratio is a guess of the network. So look at the log loss, and at the
    `effective_sample_size` of the weights made from it.

    Args:
        target: samples of q, at least 20.
        base: samples of p, at least 20.
        key: of start, split and batches.
        hidden: width of the network's layers, >= 1.
        depth: number of its layers, >= 1.
        num_steps: training steps at most, >= 1.
        learning_rate: of Adam, > 0.
        weight_decay: >= 0.
        held_out: part of the samples of each law that is held out, in (0, 1).

    Raises:
        ValueError: for too few samples, events of different shape, values that are not finite, numbers out of range.

    Source: Sugiyama, Suzuki, Kanamori, "Density ratio estimation in machine learning", 2012, chapter 4; calibration:
    Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    laws = [np.asarray(rows, np.float32) for rows in (target, base)]
    for name, rows in zip(("target", "base"), laws, strict=True):
        if rows.ndim < 1 or len(rows) < LEAST_SAMPLES:
            raise ValueError(f"{name} must hold at least {LEAST_SAMPLES} samples, got shape {rows.shape}")
        bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{name} has {len(bad)} of {len(rows)} samples that are not finite (the first: {bad[:5].tolist()})"
            )
    if laws[0].shape[1:] != laws[1].shape[1:]:
        raise ValueError(
            f"target and base must have events of one shape, got {laws[0].shape[1:]} and {laws[1].shape[1:]}"
        )
    for name, value, holds, allowed in (
        ("hidden", hidden, hidden >= 1, ">= 1"),
        ("depth", depth, depth >= 1, ">= 1"),
        ("num_steps", num_steps, num_steps >= 1, ">= 1"),
        ("learning_rate", learning_rate, learning_rate > 0, "> 0"),
        ("weight_decay", weight_decay, weight_decay >= 0, ">= 0"),
        ("held_out", held_out, 0 < held_out < 1, "in (0, 1)"),
    ):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {value}")

    together = np.concatenate(laws).reshape(len(laws[0]) + len(laws[1]), -1).astype(np.float64)
    event = laws[0].shape[1:]
    centre = together.mean(axis=0).reshape(event).astype(np.float32)
    scale = np.where(together.std(axis=0) > 0, together.std(axis=0), 1).reshape(event).astype(np.float32)

    def standardised(x: Any) -> Array:
        return (jnp.asarray(x, jnp.float32) - centre) / scale

    key_init, key_split, key_batches = jax.random.split(key, 3)
    trained_on, checked_on = [], []
    for law, key_law in zip(laws, jax.random.split(key_split), strict=True):
        order = np.asarray(jax.random.permutation(key_law, len(law)))
        num_held = max(1, min(len(law) - 1, round(held_out * len(law))))
        checked_on.append(standardised(law[order[:num_held]]))
        trained_on.append(standardised(law[order[num_held:]]))

    module = _Classifier(hidden, depth)
    params = module.init(key_init, trained_on[0][:1])
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)

    def logits(params: Any, rows: Array) -> Array:
        return jnp.asarray(module.apply(params, rows))

    def log_loss(params: Any, rows: list[Array]) -> Array:
        of_target, of_base = (logits(params, each) for each in rows)
        return 0.5 * (jnp.mean(jax.nn.softplus(-of_target)) + jnp.mean(jax.nn.softplus(of_base)))

    @jax.jit
    def train(params: Any, opt_state: Any, first: Any) -> tuple[Any, Any, Array]:
        def step(carry: Any, index: Array) -> tuple[Any, None]:
            params, opt_state = carry
            keys = jax.random.split(jax.random.fold_in(key_batches, index))
            rows = [
                law[jax.random.randint(key, (BATCH_SIZE,), 0, len(law))]
                for key, law in zip(keys, trained_on, strict=True)
            ]
            gradient = jax.grad(log_loss)(params, rows)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        carry, _ = jax.lax.scan(step, (params, opt_state), first + jnp.arange(_CHECK_EVERY))
        return *carry, log_loss(carry[0], checked_on)

    opt_state, best = optimizer.init(params), (float(log_loss(params, checked_on)), 0, params)
    for first in range(0, num_steps, _CHECK_EVERY):
        params, opt_state, loss = train(params, opt_state, first)
        if float(loss) < best[0]:
            best = float(loss), first + _CHECK_EVERY, params
    _, steps, params = best
    slope, offset, loss = _calibrated(*(np.asarray(logits(params, rows), np.float64) for rows in checked_on))

    def log_ratio(x: Array, cond: Any = None, /) -> Array:
        return slope * logits(params, standardised(x)) + offset

    return DensityRatio(log_ratio, loss, slope, steps)


def effective_sample_size(log_weights: Float[Array | np.ndarray, "num"]) -> float:
    """Share of the samples that weights are worth, ``(sum w)^2 / (num sum w^2)``, in (0, 1].

    From the logarithms of the weights. 1 for equal weights, 1 / num where one has it all. It is an estimate from the
    same samples: where the variance of the weights is infinite it falls towards 0 as samples are added.

    Raises:
        ValueError: for no weights, or some that are nan or +inf.
    """
    logs = np.asarray(log_weights, np.float64)
    if logs.ndim != 1 or not len(logs) or np.isnan(logs).any() or not np.isfinite(logs.max()):
        raise ValueError(
            f"log_weights must be [num], num >= 1, without nan or +inf and not all -inf, got {logs}"
        )
    weights = np.exp(logs - logs.max())
    return float(weights.sum() ** 2 / (len(weights) * np.sum(weights**2)))


def _calibrated(of_target: np.ndarray, of_base: np.ndarray) -> tuple[float, float, float]:
    """Slope and offset of the logits with the least log loss, the two laws counting alike; and that loss.

    The slope is kept positive: a classifier worse than chance is no reason to turn it round.
    """

    def loss(numbers: np.ndarray) -> float:
        slope, offset = np.exp(numbers[0]), numbers[1]
        wrong = np.logaddexp(0, -(slope * of_target + offset)).mean()
        return 0.5 * (wrong + np.logaddexp(0, slope * of_base + offset).mean())

    found = optimize.minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-6.0, 2.0), (-5.0, 5.0)])
    return float(np.exp(found.x[0])), float(found.x[1]), float(found.fun)
