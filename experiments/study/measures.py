"""What is read off the curve of a run, besides the columns of a report."""

from collections.abc import Sequence

import numpy as np

from experiments.summary import COLUMNS, Column, Record
from gft_jax.metrics import instantaneous_variance, spearman

MAX_GAP = 0.2
"""A curve that jumps further than this in effective target weight between two evaluations is not read in between."""

_LATE, _SETTLED = 0.9, 0.8
"""Parts of the steps from which on a run is late, or settled: the schedules have cooled by the latter."""

_CURVE = "Curve"

# fmt: off
MEASURES: dict[str, Column] = {column.key: column for column in (
    *COLUMNS,
    Column("late_w2", "late W2", "late W2", _CURVE, "lower", 3, 1,
           "Mean W2 of the evaluations in the last tenth of the steps."),
    Column("late_energy_distance", "late energy", "late energy distance", _CURVE, "lower", 4, 1,
           "Mean energy distance of the same evaluations."),
    Column("steps_to_tenth", "steps to tenth", "steps to a tenth of the base's energy distance", _CURVE, "lower",
           0, 1, "First evaluated step at which the energy distance is below a tenth of the base's."),
    Column("variance_without_first", "var without first", "var ΔW₂ · 10³ without the first", _CURVE, "lower", 2, 1e3,
           "Variance of the increments of W2, without that from step 0 to the first evaluation after it."),
    Column("settled_variance", "settled var", "var ΔW₂ · 10³, last fifth", _CURVE, "lower", 2, 1e3,
           "Variance of the increments of W2 in the last fifth of the steps."),
    Column("descending_spearman", "rho descending", "Spearman, energy, down to a tenth", _CURVE, "closer to -1", 2, 1,
           "Spearman correlation of step and energy distance, from step 0 to the first evaluation below a tenth of "
           "the base's; none with fewer than five evaluations there."),
    Column("settled_spearman", "rho settled", "Spearman, energy, last fifth", _CURVE, "closer to -1", 2, 1,
           "The same correlation in the last fifth of the steps."),
    Column("late_weight", "late w_hat", "late ŵ", _CURVE, "higher", 3, 1,
           "Mean effective target weight in the last tenth of the steps."),
)}
# fmt: on


def of_curve(curve: Sequence[Record], base_energy: float) -> dict[str, float]:
    """Measures of the evaluations of one run by name; what the curve does not hold has no entry."""
    steps, w2, energy, weight = columns(curve)
    late, settled = (steps >= part * steps[-1] for part in (_LATE, _SETTLED))
    numbers = {
        "late_w2": float(w2[late].mean()),
        "late_energy_distance": float(energy[late].mean()),
    }
    if np.isfinite(weight[late]).all():
        numbers["late_weight"] = float(weight[late].mean())
    if len(w2) > 3:
        numbers["variance_without_first"] = instantaneous_variance(w2[1:])
    if settled.sum() > 2:
        numbers["settled_variance"] = instantaneous_variance(w2[settled])
        numbers["settled_spearman"] = spearman(steps[settled], energy[settled])
    below = np.flatnonzero(energy < 0.1 * base_energy)
    if len(below):
        end = int(below[0])
        numbers["steps_to_tenth"] = float(steps[end])
        if end >= 4:
            numbers["descending_spearman"] = spearman(steps[: end + 1], energy[: end + 1])
    return numbers


def until_weight(curve: Sequence[Record], level: float) -> dict[str, float]:
    """A run read where its effective target weight first reaches a level: there, and on the way there.

    ``late_w2``, ``late_energy_distance`` and ``step`` are interpolated linearly between the evaluations before and
    after; ``spearman_energy_distance`` and ``variance_of_w2_increments`` are those of the evaluations up to the
    latter. Empty if the level is never reached, reached from the start, or jumped over by more than `MAX_GAP`.
    """
    steps, w2, energy, weight = columns(curve)
    above = np.flatnonzero(weight >= level)
    if not len(above) or above[0] == 0:
        return {}
    i = int(above[0])
    if weight[i] - weight[i - 1] > MAX_GAP:
        return {}
    share = (level - weight[i - 1]) / (weight[i] - weight[i - 1])
    numbers = {
        name: float(values[i - 1] + share * (values[i] - values[i - 1]))
        for name, values in (("late_w2", w2), ("late_energy_distance", energy), ("step", steps))
    }
    if i > 1:
        numbers["spearman_energy_distance"] = spearman(steps[: i + 1], energy[: i + 1])
        numbers["variance_of_w2_increments"] = instantaneous_variance(w2[: i + 1])
    return numbers


def columns(curve: Sequence[Record]) -> np.ndarray:
    """Steps, W2, energy distance and effective target weight, ``[4, evaluations]``; NaN for what was not measured."""
    keys = ("step", "w2", "energy_distance", "reached_weight")
    return np.array([[record.get(key, np.nan) for record in curve] for key in keys], dtype=np.float64)
