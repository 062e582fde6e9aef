"""The ratio of two densities from samples, by a probabilistic classifier."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jaxtyping import Array, Float, Key
from scipy import optimize

from gft_jax.metrics.resampling import generator

BATCH_SIZE = 128
_CHECK_EVERY = 25
LEAST_SAMPLES = 20


class DensityRatio(NamedTuple):
    """``log q(x) - log p(x)`` as a function, and how far it is to be trusted."""

    log_ratio: Callable[[Array], Array]
    """``[batch, *event]`` -> ``[batch]``, in nats; differentiable, and a reward when it is given ``(x, cond)``."""
    log_loss: float
    """Of the calibrated classifier on the held-out part, in nats a sample, the two laws counting alike: log 2 = 0.693
    where it cannot tell them apart. A value near 0 says that they do not overlap: no weights can mend that. A little
    too low where that part is small, since the step and the calibration were chosen on it."""
    slope: float
    """Factor by which calibration multiplied the logits: far below 1, the classifier was overconfident."""
    num_steps: int
    """Training steps after which the held-out loss was least; 0 where nothing could be learned: the ratio is then 0."""


class _Classifier(linen.Module):
    hidden: int
    depth: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for _ in range(self.depth):
            h = linen.silu(linen.Dense(self.hidden)(h))
        # A square beside the logits of the network: between normal laws the log-ratio is quadratic. It starts at zero,
        # as of equal laws: what early stopping leaves where nothing can be learned.
        features = jnp.concatenate([h, x**2], axis=-1)
        return linen.Dense(1, kernel_init=linen.initializers.zeros)(features)[:, 0]


def fit_density_ratio(
    target: Float[Array | np.ndarray, "num *event"],
    base: Float[Array | np.ndarray, "num_base *event"],
    key: Key[Array, ""],
    *,
    hidden: int = 64,
    depth: int = 2,
    num_steps: int = 1000,
    learning_rate: float | int = 1e-3,
    weight_decay: float | int = 1e-3,
    held_out: float = 0.25,
) -> DensityRatio:
    """Log-ratio of the law of ``target`` over the law of ``base``, from samples of both.

    A network tells the two apart by logistic regression, in batches with as many rows of either; it is kept at the
    step with the least loss on a held-out part (early stopping), and its logits are calibrated there by a slope and
    an offset (Platt). With both laws counting alike the logit is ``log q - log p``, whatever the numbers of samples. It
    starts at zero, and stays there if no step lowers the held-out loss.

    Bias: towards zero where samples are few, since training stops early and the labels of the calibration are
    smoothed. In the tests, 1500 samples each of N(1, 0.8^2) and N(0, 1) give a mean squared error of 0.02 to 0.11
    nats^2 under the two laws, most of it in their tails.

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

    event = laws[0].shape[1:]
    laws = [rows.reshape(len(rows), -1) for rows in laws]
    centre, scale = _centre_and_scale(np.concatenate(laws).astype(np.float64))

    key_split, key_train = jax.random.split(key)
    random = generator(key_split)
    trained_on, checked_on = [], []
    for law in laws:
        order = random.permutation(len(law))
        num_held = max(1, min(len(law) - 1, round(held_out * len(law))))
        checked_on.append((law[order[:num_held]] - centre) / scale)
        trained_on.append((law[order[num_held:]] - centre) / scale)

    module = _Classifier(hidden, depth)
    best = _train(module, trained_on, checked_on, key_train, num_steps, learning_rate, weight_decay)
    slope, offset, loss = _calibrated(*(np.asarray(logits, np.float64) for logits in best.logits))

    def log_ratio(x: Array, cond: Any = None, /) -> Array:
        if jnp.shape(x)[1:] != event:
            raise ValueError(
                f"the ratio is one of events of shape {event}, got samples of shape {jnp.shape(x)}"
            )
        rows = jnp.asarray(x, jnp.float32).reshape(len(x), -1)
        return slope * _logits(module, best.params, (rows - centre) / scale) + offset

    return DensityRatio(log_ratio, loss, slope, int(best.num_steps))


def _centre_and_scale(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = rows.std(axis=0)
    typical = np.sqrt(np.mean(spread**2))
    # An entry that changes by rounding alone, as the corner of an image may, must not be blown up.
    scale = np.where(spread > 1e-6 * typical, spread, typical if typical > 0 else 1)
    return rows.mean(axis=0).astype(np.float32), scale.astype(np.float32)


class _Best(NamedTuple):
    loss: Array
    """On the held-out part, in nats."""
    logits: tuple[Array, Array]
    """There, of target and base."""
    num_steps: Array
    params: Any


@partial(jax.jit, static_argnums=0)
def _logits(module: _Classifier, params: Any, rows: Array) -> Array:
    return jnp.asarray(module.apply(params, rows))


@partial(jax.jit, static_argnums=0)
def _train(
    module: _Classifier,
    trained_on: list[Array],
    checked_on: list[Array],
    key: Array,
    num_steps: Any,
    learning_rate: Any,
    weight_decay: Any,
) -> _Best:
    """The parameters with the least held-out loss, looked at every few steps; rows: of target and base."""
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
    key_init, key_batches = jax.random.split(key)

    def log_loss(params: Any, rows: list[Array]) -> tuple[Array, tuple[Array, Array]]:
        of_target, of_base = (_logits(module, params, each) for each in rows)
        loss = 0.5 * (jnp.mean(jax.nn.softplus(-of_target)) + jnp.mean(jax.nn.softplus(of_base)))
        return loss, (of_target, of_base)

    def step(index: Array, carry: Any) -> Any:
        params, opt_state = carry
        keys = jax.random.split(jax.random.fold_in(key_batches, index))
        rows = [
            law[jax.random.randint(key_law, (BATCH_SIZE,), 0, len(law))]
            for key_law, law in zip(keys, trained_on, strict=True)
        ]
        gradient, _ = jax.grad(log_loss, has_aux=True)(params, rows)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def steps_and_check(index: Array, carry: Any) -> Any:
        first, *trained, best = index * _CHECK_EVERY, *carry
        last = jnp.minimum(first + _CHECK_EVERY, num_steps)
        params, opt_state = jax.lax.fori_loop(first, last, step, tuple(trained))
        here = _Best(*log_loss(params, checked_on), last, params)
        best = jax.tree.map(lambda new, old: jnp.where(here.loss < best.loss, new, old), here, best)
        return params, opt_state, best

    params = module.init(key_init, trained_on[0][:1])
    start = _Best(*log_loss(params, checked_on), jnp.zeros_like(num_steps), params)
    num_checks = -(-num_steps // _CHECK_EVERY)
    return jax.lax.fori_loop(0, num_checks, steps_and_check, (params, optimizer.init(params), start))[-1]


def effective_sample_size(log_weights: Float[Array | np.ndarray, "num"]) -> float:
    """Share of the samples that weights are worth, ``(sum w)^2 / (num sum w^2)``, in (0, 1].

    From the logarithms of the weights. 1 for equal weights, 1 / num where one has it all. It is an estimate from the
    same samples, and too high where they miss the rare ones of large weight: for the weights of
    `gft_jax.objectives.terminal` at w = 0.5, from N(3, 0.5^2) over N(0, 1), it is about 0.29 of 128 samples, 0.12 of
    10000 and 0.022 of all. Where the variance of the weights is infinite it falls towards 0 as samples are added.

    Raises:
        ValueError: for no weights, some that are nan or +inf, or none that is above zero.
    """
    logs = np.asarray(log_weights, np.float64)
    if logs.ndim != 1 or not len(logs) or np.isnan(logs).any() or not np.isfinite(logs.max()):
        raise ValueError(
            f"log_weights must be [num], num >= 1, without nan or +inf and not all -inf, got {logs}"
        )
    weights = np.exp(logs - logs.max())
    return float(weights.sum() ** 2 / (len(weights) * np.sum(weights**2)))


def _calibrated(of_target: np.ndarray, of_base: np.ndarray) -> tuple[float, float, float]:
    """Slope and offset of the logits with the least log loss, the two laws counting alike; and the log loss.

    The slope is kept positive: a classifier worse than chance is no reason to turn it round. Labels are smoothed, as
    by one more sample of either label: a few samples that happen to be told apart do not make it certain.
    """
    num = min(len(of_target), len(of_base))
    right = (num + 1) / (num + 2)

    def loss(numbers: np.ndarray, right: float) -> float:
        slope, offset = np.exp(numbers[0]), numbers[1]
        # Logits of the right answers.
        logits = slope * of_target + offset, -(slope * of_base + offset)
        entropies = [right * np.logaddexp(0, -each) + (1 - right) * np.logaddexp(0, each) for each in logits]
        return 0.5 * sum(each.mean() for each in entropies)

    bounds = [(-6.0, 2.0), (-5.0, 5.0)]
    found = optimize.minimize(loss, np.zeros(2), (right,), method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(found[0])), float(found[1]), float(loss(found, 1.0))
