"""A small classifier of images in Flax: one to give the reward, another to judge by."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

Classifier = Callable[[Array | np.ndarray], Array]
"""Images ``[num, *event]`` -> logits ``[num, num_classes]``."""

NUM_CLASSES = 10
WIDTH = 128
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
NOISE = 0.3
"""Standard deviation of the noise on training images, which keeps the classifier's gradients tame between images."""
SMOOTHING = 0.02
"""Share of the label that is spread over all classes: log-probabilities of images of other classes stay bounded."""


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "batch *event"]) -> Float[Array, "batch classes"]:
        h = x.reshape(x.shape[0], -1)
        for _ in range(2):
            h = nn.silu(nn.Dense(WIDTH)(h))
        return nn.Dense(NUM_CLASSES)(h)


def train_classifier(images: np.ndarray, labels: np.ndarray, num_steps: int, seed: int) -> Classifier:
    """Logits of a network trained on images ``[num, *event]`` with labels ``[num]``; the same for the same seed."""
    network = _Network()
    key_init, key_batches = jax.random.split(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def logits(params: Any, x: Any) -> Any:
        return network.apply(params, jnp.asarray(x))

    def loss(params: optax.Params, x: Array, wanted: Array) -> Array:
        return jnp.mean(optax.softmax_cross_entropy(logits(params, x), wanted))

    @jax.jit
    def trained(images: Array, labels: Array) -> optax.Params:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), SMOOTHING)

        def step(state: tuple, number: Array) -> tuple[tuple, None]:
            params, opt_state = state
            key_rows, key_noise = jax.random.split(jax.random.fold_in(key_batches, number))
            rows = jax.random.randint(key_rows, (BATCH_SIZE,), 0, len(images))
            x = images[rows] + NOISE * jax.random.normal(key_noise, (BATCH_SIZE, *images.shape[1:]))
            updates, opt_state = optimizer.update(jax.grad(loss)(params, x, targets[rows]), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        params = network.init(key_init, images[:1])
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0]

    params = trained(jnp.asarray(images), jnp.asarray(labels))
    return functools.partial(logits, params)


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose class has the largest logit."""
    return float(np.mean(np.argmax(classifier(images), axis=-1) == labels))
