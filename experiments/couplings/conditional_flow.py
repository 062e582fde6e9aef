"""One run of a conditional flow: trained with a coupling, scored condition by condition."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft
from experiments.couplings.comparison import Outcome
from experiments.couplings.conditional_tasks import Task
from experiments.couplings.from_scratch import trained_from_scratch
from gft_jax.couplings import Coupling
from gft_jax.pairing import Batches
from gft_jax.types import Drift, Params

ConditionalCoupling = Literal["independent", "exact", "sinkhorn", "respecting"]
Rate = Literal["constant", "cosine"]
"""How the learning rate goes: stays at `CONSTANT_RATE`, or falls from that of the task to zero as a cosine."""

COUPLINGS: dict[ConditionalCoupling, Callable[[], Coupling]] = {
    "independent": gft.couplings.independent,
    "exact": gft.couplings.exact,
    "sinkhorn": gft.couplings.sinkhorn,
    "respecting": lambda: gft.couplings.respecting_labels(gft.couplings.exact()),
}

CONSTANT_RATE = 1e-3
WEIGHT_DECAY = 0.01
BATCH_SIZE = 256
NUM_STEPS = (1, 4, 100)
"""Euler steps of the samples that are scored."""
_SKEW_STEPS = 200
"""Batches by each half of which the skew is estimated."""


def run(task: Task, coupling: ConditionalCoupling, seed: int, num_steps: int, rate: Rate) -> Outcome:
    """Trains a flow, and scores it; the array ``samples`` is ``[conditions, num, *event]``."""
    stream = task.batches(COUPLINGS[coupling](), BATCH_SIZE, seed)
    drift = gft.drifts.from_linen(task.network)
    params = trained(task, drift, stream, seed, num_steps, rate)
    outcome = measured(task, drift, params)
    return outcome._replace(numbers=outcome.numbers | {"skew": skew(stream, task.cond is None)})


def trained(task: Task, drift: Drift, stream: Batches, seed: int, num_steps: int, rate: Rate) -> Params:
    """Parameters after ``num_steps`` of flow matching on the linear path."""
    cosine = optax.cosine_decay_schedule(task.learning_rate, num_steps)
    optimizer = optax.adamw(CONSTANT_RATE if rate == "constant" else cosine, weight_decay=WEIGHT_DECAY)
    event_shape = task.x1.shape[1:]
    return trained_from_scratch(task.network, drift, event_shape, optimizer, stream, seed, num_steps)


def measured(task: Task, drift: Drift, params: Params) -> Outcome:
    """Scores of a flow on the test points of its task.

    Returns:
        The numbers: ``w2_N``, conditional W2 of samples by N Euler steps and real points; of the samples by the most
        steps also ``energy_distance``, mean over conditions and draws, and ``path_length``; ``floor``, conditional W2
        of other real points and real points.
    """
    by_condition = task.x0.shape[:3]
    x0 = task.x0.reshape(-1, *task.x0.shape[3:])
    cond = np.repeat(np.arange(by_condition[0], dtype=np.int32), by_condition[1] * by_condition[2])

    @jax.jit
    def solve(params: Params) -> Any:
        few = [
            gft.sampling.sample_ode(drift, params, x0, cond=cond, num_steps=num).x for num in NUM_STEPS[:-1]
        ]
        last = gft.sampling.sample_ode(drift, params, x0, cond=cond, num_steps=NUM_STEPS[-1], save_steps=True)
        return [*few, last.x], last.trajectory

    solved, trajectory = solve(params)
    samples = [np.asarray(x).reshape(task.x0.shape) for x in solved]
    scores = {f"w2_{num}": conditional_w2(x, task.real) for num, x in zip(NUM_STEPS, samples, strict=True)}
    numbers = scores | {
        "energy_distance": float(np.mean(_by_condition(gft.metrics.energy_distance, samples[-1], task.real))),
        "path_length": float(jnp.mean(gft.metrics.path_length(trajectory))),
        "floor": conditional_w2(task.others[:, None], task.real),
    }
    return Outcome(numbers, {"samples": samples[-1][:, 0]})


def conditional_w2(samples: np.ndarray, real: np.ndarray) -> float:
    """``sqrt(mean W2(samples of c, real ones of c)^2)``, the mean over conditions c, all of one weight, and draws.

    In the unit of the data; each W2 is exact, and biased upwards as `gft_jax.metrics.w2` says, by what ``num`` points
    of *one* condition leave.

    Args:
        samples: ``[conditions, draws, num, *event]``.
        real: ``[conditions, num, *event]``.
    """
    return float(np.sqrt(np.mean(np.square(_by_condition(gft.metrics.w2, samples, real)))))


def _by_condition(
    metric: Callable[[np.ndarray, np.ndarray], float], samples: np.ndarray, real: np.ndarray
) -> list[float]:
    return [metric(draw, points) for draws, points in zip(samples, real, strict=True) for draw in draws]


def skew(stream: Batches, of_source: bool) -> float:
    """How far a condition moves the mean of the end that should not know of it, in the batches of a coupling.

    ``sqrt(mean |E[x | c] - E[x]|^2)``, the mean over conditions c, x the noise x0 where conditions are the data's, and
    the data x1 where they are the source's. It is 0 for a coupling that respects conditions; 0 alone does not mean
    that it does. The square is the inner product of two estimates from separate batches, and so without bias; where it
    is negative, the result is 0.

    Args:
        stream: batches, with the conditions as ``cond``.
        of_source: whether they are the source's.
    """
    estimates = []
    for half in range(2):
        batch = stream.many(half * _SKEW_STEPS, _SKEW_STEPS)
        x = np.asarray(batch.x1 if of_source else batch.x0, np.float64)
        x, cond = x.reshape(x.shape[0] * x.shape[1], -1), np.ravel(batch.cond)
        means = [x[cond == c].mean(axis=0) for c in np.unique(cond)]
        estimates.append(np.stack(means) - x.mean(axis=0))
    return float(np.sqrt(max(0.0, np.mean(np.sum(estimates[0] * estimates[1], axis=1)))))
