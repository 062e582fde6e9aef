"""How a fine-tuned flow of images is scored: always from the same noise, and some rows at a time."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import gft_jax as gft
from experiments.data.shifted import ShiftedData
from experiments.evaluator import NOISE_SEED, Evaluate
from experiments.methods import TimedPath
from gft_jax.objectives.path_rows import path_rows, squared_norm
from gft_jax.objectives.weighting import uniform
from gft_jax.types import Drift, Params

Features = Callable[[np.ndarray], Any]
"""Samples ``[num, *event]`` -> features ``[num, width]`` in which distances are taken."""

NUM_PAIRS = 256
"""Pairs of noise and data by which the effective target weight is measured."""
NUM_RETAINED = 64
"""Sampling paths of the base on which its drift is compared with the fine-tuned one."""
NUM_KNOWN = 1024
"""Images of fine-tuning by which the classes of samples are recognised, at most."""
NUM_NEIGHBOURS = 5
"""Of them, those that decide about a sample."""
_RETENTION_TIMES = (0.0, 0.3, 0.6, 0.9)


class Judged(NamedTuple):
    """By what samples are compared with data."""

    space: Features
    """Where distances are taken."""
    label_accuracy: Callable[[Any], float] | None
    """Of samples in that space that were told the classes of held-out data; None where that cannot be told."""


def judged(data: ShiftedData, features: Features | None = None) -> Judged:
    """How samples are judged: in features, or as they are; with classes, by their neighbours among the data.

    Of classes of which there are fewer than `NUM_NEIGHBOURS` among `NUM_KNOWN` rows nothing could be recognised.

    Args:
        data: held-out data, and those of fine-tuning.
        features: in which distances are taken; None for the samples themselves.
    """
    space: Features = (lambda x: x) if features is None else (lambda x: np.asarray(features(x)))
    if data.labels is None:
        return Judged(space, None)
    told, num = data.labels.held_out, len(data.target)
    # Spread over all rows, which may lie class by class.
    index = np.linspace(0, num - 1, min(num, NUM_KNOWN)).round().astype(int)
    labels = data.labels.target[index]
    if len(index) < NUM_NEIGHBOURS * len(np.unique(labels)):
        return Judged(space, None)
    known = space(np.asarray(data.target[index]))
    accuracy = functools.partial(gft.metrics.label_accuracy, num_neighbours=NUM_NEIGHBOURS)
    return Judged(space, lambda samples: accuracy(samples, told, known, labels))


class Sampled(NamedTuple):
    """Samples, and what they cost."""

    x: Array
    """``[num, *event]``; not finite where the solver did not come to the end."""
    lengths: Array | None
    """Of their paths ``[num]``, where steps are Euler's."""
    num_evaluations: Array
    """Calls of the network for each ``[num]``, rejected steps included."""


class Sampler(NamedTuple):
    """How samples are made."""

    num_steps: int
    """Euler steps."""
    tolerance: float | None = None
    """Relative and absolute tolerance of Dopri5, in the place of Euler's method."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 for none."""
    rows_at_once: int = 64

    @property
    def solver(self) -> diffrax.AbstractSolver:
        """Euler's method, or the one whose steps adapt."""
        return diffrax.Euler() if self.tolerance is None else diffrax.Dopri5()

    @property
    def controller(self) -> diffrax.AbstractStepSizeController | None:
        """Of the steps; None for equal ones."""
        if self.tolerance is None:
            return None
        return diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance)

    @property
    def calls(self) -> int:
        """Calls of the network for an evaluation of the drift that is sampled."""
        return 1 if self.guidance == 1.0 else 2

    @property
    def num_evaluations(self) -> int | None:
        """Calls of the network for a sample; None where steps adapt, and it takes counting."""
        return self.calls * self.num_steps if self.tolerance is None else None

    def drift(self, drift: Drift, is_conditional: bool) -> Drift:
        """The drift that is sampled, over the same parameters."""
        if self.guidance == 1.0 or not is_conditional:
            return drift
        guided, scale = gft.drifts.guide(drift, None), self.guidance

        def velocity(params: Params, t: Array, x: Array, cond: Any = None, /) -> Array:
            return guided(gft.drifts.GuidanceParams(params, scale), t, x, cond)

        return velocity

    def sample(self, drift: Drift, params: Params, noise: Array, cond: Any) -> Sampled:
        """Samples of a drift, of that which is sampled."""
        if self.tolerance is None:
            result = gft.sampling.sample_ode(
                drift, params, noise, cond=cond, num_steps=self.num_steps, save_steps=True
            )
            trajectory: Any = result.trajectory
            x, lengths = result.x, gft.metrics.path_length(trajectory)
        else:
            result = gft.sampling.sample_ode(
                drift, params, noise, cond=cond, solver=self.solver, stepsize_controller=self.controller
            )
            x, lengths = jnp.where(result.succeeded, result.x, jnp.nan), None
        return Sampled(x, lengths, jnp.broadcast_to(self.calls * result.num_evaluations, len(x)))


def evaluator(
    drift: Drift,
    base_params: Params,
    data: ShiftedData,
    timed_path: TimedPath,
    sampler: Sampler,
    pairs: gft.Batch,
    judged: Judged,
) -> Evaluate:
    """Scores of parameters by samples against held-out data, each told the class of a held-out image.

    The names are those of `experiments.evaluator.evaluator`: ``w2``, ``energy_distance``, ``diversity``,
    ``one_step_w2`` and ``training_energy_distance`` (to as many data of fine-tuning as are held out) in pixels or in
    features, ``path_length`` where steps are Euler's, ``retention`` at four times of the base's sampling paths,
    ``reached_weight`` on `pairs`, and ``num_evaluations``, the mean number of calls of the network for a sample. With
    classes there is ``label_accuracy``, the share of samples that their neighbours among images of fine-tuning take for
    the class they were told.

    Args:
        drift: the network.
        base_params: of the base.
        data: held-out data, and those of fine-tuning.
        timed_path: path and times of training.
        sampler: how samples are made.
        pairs: rows of training, paired as there, always the same ones.
        judged: by what samples are compared with data.
    """
    noise = jax.random.normal(jax.random.key(NOISE_SEED), data.held_out.shape)
    labels = None if data.labels is None else jnp.asarray(data.labels.held_out)
    sampled_drift = sampler.drift(drift, labels is not None)
    rows = path_rows(timed_path.path, timed_path.times, uniform, pairs)
    seen = judged.space
    held_out, fresh = seen(data.held_out), seen(data.fresh)

    @jax.jit
    def draw(params: Params, noise: Array, cond: Any) -> Any:
        one_step = gft.sampling.sample_ode(sampled_drift, params, noise, cond=cond, num_steps=1).x
        return sampler.sample(sampled_drift, params, noise, cond), one_step

    @jax.jit
    def on_base_paths(params: Params, noise: Array, cond: Any) -> Array:
        result = gft.sampling.sample_ode(
            drift, params, noise, cond=cond, num_steps=sampler.num_steps, save_at=_RETENTION_TIMES
        )
        trajectory: Any = result.trajectory
        return jnp.swapaxes(trajectory, 0, 1)

    @jax.jit
    def moved(params: Params, base_params: Params, t: Array, x: Array, velocity: Array, cond: Any) -> Any:
        """Squared displacement from the base's drift, and its part along the way to the data, of each row."""
        base = drift(base_params, t, x, cond)
        displacement, toward = drift(params, t, x, cond) - base, velocity - base
        return squared_norm(displacement), jnp.sum((displacement * toward).reshape(len(t), -1), axis=1)

    def in_parts(function: Callable[..., Any], *arrays: Any) -> Any:
        return by_parts(function, sampler.rows_at_once, *arrays)

    few = jax.tree.map(lambda leaf: leaf[:NUM_RETAINED], (noise, labels))
    paths = in_parts(functools.partial(on_base_paths, base_params), *few)
    count = paths.shape[1]
    times = np.tile(np.asarray(_RETENTION_TIMES, np.float32), len(paths))
    paths = paths.reshape(-1, *noise.shape[1:])
    retained = (times, paths, np.zeros_like(paths), None if few[1] is None else jnp.repeat(few[1], count))

    def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        sampled, one_step = in_parts(functools.partial(draw, params), noise, labels)
        of = functools.partial(moved, params, base_params)
        squared, along = in_parts(of, rows.t, rows.x, rows.velocity, rows.cond)
        made = seen(sampled.x)
        scores = {
            "w2": gft.metrics.w2(made, held_out),
            "energy_distance": gft.metrics.energy_distance(made, held_out),
            "one_step_w2": gft.metrics.w2(seen(one_step), held_out),
            "diversity": gft.metrics.mean_pairwise_distance(made),
            "training_energy_distance": gft.metrics.energy_distance(made, fresh),
            "retention": np.sqrt(np.mean(in_parts(of, *retained)[0])),
            "reached_weight": gft.cooling.effective_target_weight(np.mean(squared), np.mean(along)),
            "num_evaluations": np.mean(sampled.num_evaluations),
        }
        if sampled.lengths is not None:
            scores["path_length"] = np.mean(sampled.lengths)
        if judged.label_accuracy is not None:
            scores["label_accuracy"] = judged.label_accuracy(made)
        return {name: float(value) for name, value in scores.items()}, sampled.x

    return evaluate


def floor(data: ShiftedData, judged: Judged) -> dict[str, float]:
    """Scores of real samples: data of fine-tuning, as many as are held out; the class is that of held-out ones."""
    held_out, fresh = judged.space(data.held_out), judged.space(data.fresh)
    scores = {
        "w2": float(gft.metrics.w2(fresh, held_out)),
        "energy_distance": float(gft.metrics.energy_distance(fresh, held_out)),
        "diversity": float(gft.metrics.mean_pairwise_distance(fresh)),
    }
    if judged.label_accuracy is not None:
        scores["label_accuracy"] = judged.label_accuracy(held_out)
    return scores


def by_parts(function: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """What a function of rows gives, found for some rows at a time, in NumPy arrays.

    The last part is filled up with copies of the last row, so that all run the same program.

    Args:
        function: of arrays ``[rows, ...]`` (or None) -> pytree of arrays ``[rows, ...]``.
        size: rows of a part.
        *arrays: pytrees of arrays ``[num, ...]``; the first holds at least one.
    """
    num = len(jax.tree.leaves(arrays)[0])
    size, pieces = min(size, num), []
    for start in range(0, num, size):
        index = np.minimum(np.arange(start, start + size), num - 1)
        pieces.append(jax.device_get(function(*jax.tree.map(lambda leaf, rows=index: leaf[rows], arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num], *pieces)
