"""Rows of the log of training steps."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gft_jax.cooling import effective_target_weight, target_weight
from gft_jax.finetuning import StepInfo

Diagnose = Callable[[Mapping[str, Any]], dict[str, float]]
"""Diagnostics of an objective by name, each ``[steps]`` -> what is logged of them."""


def train_rows(infos: StepInfo, last_step: int, every: int, diagnose: Diagnose) -> list[dict[str, Any]]:
    """What is logged of a chunk of steps: means over the finite ones of every so many steps.

    All rows at once, by NumPy: a call of JAX for each would take as long as a small step.

    Args:
        infos: of the chunk, leaves ``[steps]`` on the host.
        last_step: the step that the chunk ends at.
        every: steps of a row, a divisor of their number.
        diagnose: of the objective.
    """
    count = len(infos.loss)

    def grouped(values: Any) -> np.ndarray:
        return np.asarray(values).reshape(count // every, every)

    is_finite = grouped(infos.is_finite)
    num_finite = is_finite.sum(axis=1)

    def means(values: Any) -> np.ndarray:
        return np.where(is_finite, grouped(values), 0.0).sum(axis=1) / np.maximum(num_finite, 1)

    stats = {name: grouped(values) for name, values in infos.stats.items()}
    zeros = np.zeros(count)
    squared = means(stats.get("displacement_squared", zeros))
    along = means(stats.get("displacement_along_target", zeros))
    reached = np.asarray(effective_target_weight(squared, along))
    weight = grouped(target_weight(infos.temperature)).mean(axis=1)
    temperature = grouped(infos.temperature)[:, -1]
    loss, grad_norm = means(infos.loss), means(infos.grad_norm)
    rows = []
    for index, number in enumerate(num_finite):
        row: dict[str, Any] = {
            "step": last_step - count + (index + 1) * every,
            "loss": float(loss[index]) if number else None,
            "temperature": float(temperature[index]),
            "target_weight": float(weight[index]),
            "effective_target_weight": float(reached[index]) if squared[index] > 0 else None,
            "grad_norm": float(grad_norm[index]) if number else None,
        }
        if number:
            row |= diagnose({name: values[index][is_finite[index]] for name, values in stats.items()})
        rows.append(row)
    return rows
