"""Three tasks of conditional generation: rows to train on, and fresh ones for every condition to be scored by."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

import gft_jax as gft
from experiments.data.digits import labelled_digits
from experiments.data.eight_to_moons import (
    NUM_MODES,
    VARIANCE,
    centres,
    eight_gaussians,
    eight_gaussians_and_modes,
    labelled_moons,
    moons,
)
from gft_jax.pairing import Batches, Source

TaskName = Literal["moon", "mode", "digit"]

NUM_DATA = 65_536
NUM_POINTS = 1024
"""Test points of a condition, in the plane; a multiple of eight."""
NUM_HELD_OUT = 60
"""Held-out images of a class."""
NUM_DRAWS = 3
"""Sets of noise by which a class is scored on these few images."""
_PLANAR_RATE, _IMAGE_RATE = 3e-3, 1e-3
_KRONECKER = np.array([0.7548776662466927, 0.5698402909980532])
"""1 / r and 1 / r^2, r^3 = r + 1: the two-dimensional likeness of the golden ratio."""
_DATA_SEED, _TEST_SEED = 20_230_201, 20_260_811


class Task(NamedTuple):
    """What is learnt, and the test points of one seed, which are the same for every coupling."""

    x1: np.ndarray
    """Data to train on ``[rows, *event]``."""
    cond: np.ndarray | None
    """Their conditions ``[rows]``, where they are those of the data."""
    source: Source
    """Where noise comes from, and the conditions, where they are those of the source."""
    network: gft.networks.ResidualMLP
    learning_rate: float
    """At the start, where it falls as a cosine."""
    x0: np.ndarray
    """Starts of the samples ``[conditions, draws, num, *event]``."""
    real: np.ndarray
    """Real points of each condition, for the score ``[conditions, num, *event]``."""
    others: np.ndarray
    """Other real points of each condition, for its floor, likewise."""

    def batches(self, coupling: gft.couplings.Coupling, batch_size: int, seed: int) -> Batches:
        """The stream to train on, ``cond`` being what the drift is told.

        Objectives tell the drift the conditions of the data. Here it may be told those of the source, as the coupling
        has moved them: they are put in the place of the others, of which there are none.
        """
        stream = gft.pairing.batches(
            self.x1, batch_size=batch_size, seed=seed, coupling=coupling, source=self.source, cond=self.cond
        )
        if self.cond is not None:
            return stream
        return stream._replace(
            batch=lambda step: _told_of_the_source(stream.batch(step)),
            many=lambda first, count: _told_of_the_source(stream.many(first, count)),
        )


def _told_of_the_source(batch: gft.Batch) -> gft.Batch:
    return batch._replace(cond=batch.source_cond)


def moon_task(seed: int) -> Task:
    """Eight gaussians to moons, one at a time: the condition is the moon, and is the data's."""
    x1, cond = labelled_moons(np.random.default_rng(_DATA_SEED), NUM_DATA)
    real, others = (_by_label(*labelled_moons(rng, 2 * NUM_POINTS), 2) for rng in _generators(seed, 2))
    starts = _even_starts(seed, NUM_POINTS // NUM_MODES).reshape(1, 1, NUM_POINTS, 2)
    x0 = np.broadcast_to(starts, (2, 1, NUM_POINTS, 2))
    return Task(x1, cond, eight_gaussians, _planar_network(2), _PLANAR_RATE, x0, real, others)


def mode_task(seed: int) -> Task:
    """Eight gaussians to moons, from one gaussian at a time: the condition is its number, and is the source's.

    Whichever gaussian the start is of, the end shall be both moons: ``p(x1 | mode) = p(x1)``.
    """
    real, others = (
        np.stack([moons(rng, NUM_POINTS) for _ in range(NUM_MODES)]) for rng in _generators(seed, 2)
    )
    x0 = _even_starts(seed, NUM_POINTS)[:, None]
    x1 = moons(np.random.default_rng(_DATA_SEED), NUM_DATA)
    return Task(
        x1, None, eight_gaussians_and_modes, _planar_network(NUM_MODES), _PLANAR_RATE, x0, real, others
    )


def digit_task(seed: int) -> Task:
    """Normal noise to handwritten digits of a class, which is the condition. Each seed holds out other images."""
    images, labels = labelled_digits()
    order = np.random.default_rng([_TEST_SEED, seed]).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int32)
    by_class = [np.flatnonzero(labels == label) for label in range(10)]
    real, others = (
        np.stack([images[rows[start : start + NUM_HELD_OUT]] for rows in by_class])
        for start in (0, NUM_HELD_OUT)
    )
    training = np.sort(np.concatenate([rows[NUM_HELD_OUT:] for rows in by_class]))
    event = images.shape[1:]
    key = jax.random.fold_in(jax.random.key(_TEST_SEED), seed)
    x0 = jax.random.normal(key, (10, NUM_DRAWS, NUM_HELD_OUT, *event))
    network = gft.networks.ResidualMLP(num_classes=10)
    source = gft.pairing.standard_normal(event)
    return Task(
        images[training], labels[training], source, network, _IMAGE_RATE, np.asarray(x0), real, others
    )


TASKS: dict[TaskName, Callable[[int], Task]] = {"moon": moon_task, "mode": mode_task, "digit": digit_task}


def _planar_network(num_classes: int) -> gft.networks.ResidualMLP:
    return gft.networks.ResidualMLP(hidden=128, depth=3, time_features=32, num_classes=num_classes)


def _by_label(rows: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    return np.stack([rows[labels == label] for label in range(num_labels)])


def _generators(seed: int, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([_TEST_SEED, seed, number]) for number in range(count)]


def _even_starts(seed: int, num: int) -> np.ndarray:
    """Points of each of the eight gaussians ``[NUM_MODES, num, 2]``, spread as evenly as the real points are.

    Of independent points, each part of a moon would have a few per cent more or fewer than its share, which alone
    makes W2 as large as differences between couplings. A Kronecker sequence, shifted at random for each gaussian, is
    without this error.
    """
    shift = np.random.default_rng([_TEST_SEED, seed, 2]).uniform(size=(NUM_MODES, 1, 2))
    uniform = (shift + np.arange(num)[:, None] * _KRONECKER) % 1.0
    of_modes = np.asarray(centres(jnp.arange(NUM_MODES)))[:, None]
    return (of_modes + VARIANCE**0.5 * ndtri(uniform)).astype(np.float32)
