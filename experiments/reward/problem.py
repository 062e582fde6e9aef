"""What a domain gives to the experiment: data to pretrain on, a reward, and what samples are judged by."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from experiments.configs.reward import Reward as Settings
from experiments.data.digits import labelled_digits
from experiments.data.toy2d import NUM_BASE, NUM_HELD_OUT, draw
from experiments.reward.classifier import Classifier, accuracy, train_classifier
from experiments.reward.tilting import TiltedLaws
from gft_jax.metrics import Kernel, gaussian_kernel, median_distance
from gft_jax.types import Reward

NUM_HELD_OUT_DIGITS = 600
NUM_POOL = 200_000
"""Points that laws are tilted on."""


class Problem(NamedTuple):
    """A domain, ready to be trained on."""

    data: np.ndarray
    """What the base flow is pretrained on ``[num, *event]``."""
    reward: Reward
    """What is raised."""
    real: np.ndarray
    """Real samples for the reference row of the table: held-out ones of the wanted class, or of the base's law."""
    judge: Callable[[np.ndarray], dict[str, float]]
    """Samples -> scores that the domain has of its own, of a model that no method was trained against."""
    tilted: TiltedLaws | None
    """The laws p exp(r / lam) of the data, where they are known."""
    kernel: Kernel | None
    """Of the Vendi score; None leaves it out."""
    facts: dict[str, float]
    """What config.json, and so the page, is to say of the problem."""


def problem_of(config: Settings) -> Problem:
    """The problem that the settings ask for; classifiers are trained now."""
    return {"toy2d": planar_problem, "digits": digits_problem}[config.domain](config)


def planar_problem(config: Settings) -> Problem:
    """Nearness to a point, from a law in the plane."""
    reward = gft.rewards.quadratic(np.asarray(config.centre, np.float32), config.curvature)
    data, real, pool = (
        draw(config.source, np.random.default_rng(seed), num)
        for seed, num in ((0, NUM_BASE), (2, NUM_HELD_OUT), (4, NUM_POOL))
    )
    tilted = TiltedLaws(pool, np.asarray(reward(jnp.asarray(pool)), np.float64))
    return Problem(data, reward, real, lambda samples: {}, tilted, _kernel(real), {})


def digits_problem(config: Settings) -> Problem:
    """Log-probability of one class, by a classifier on one half of the images; the other half trains the judge."""
    images, labels = labelled_digits()
    held_out, held_out_labels = images[:NUM_HELD_OUT_DIGITS], labels[:NUM_HELD_OUT_DIGITS]
    images, labels = images[NUM_HELD_OUT_DIGITS:], labels[NUM_HELD_OUT_DIGITS:]
    trainer, judge = (
        train_classifier(images[half::2], labels[half::2], config.classifier_steps, seed=half)
        for half in (0, 1)
    )
    wanted = config.target_class
    facts = {
        "classifier_accuracy": accuracy(trainer, held_out, held_out_labels),
        "judge_accuracy": accuracy(judge, held_out, held_out_labels),
    }
    return Problem(
        data=images,
        reward=gft.rewards.class_log_probability(trainer, wanted),
        real=held_out[held_out_labels == wanted],
        judge=_judged_by(judge, wanted, images[labels == wanted]),
        tilted=None,
        kernel=_kernel(held_out),
        facts=facts,
    )


def _kernel(real: np.ndarray) -> Kernel:
    """A Gaussian one, whose width is half the median distance of real samples."""
    return gaussian_kernel(0.5 * median_distance(real))


def _judged_by(judge: Classifier, wanted: int, real: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    reward = gft.rewards.class_log_probability(judge, wanted)

    def scores(samples: np.ndarray) -> dict[str, float]:
        return {
            "judged_reward": float(np.mean(reward(jnp.asarray(samples)))),
            "judged_share": float(np.mean(np.argmax(judge(samples), axis=-1) == wanted)),
            "class_energy_distance": gft.metrics.energy_distance(samples, real),
        }

    return scores
