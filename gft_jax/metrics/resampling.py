"""What a metric's value is worth: its floor, its confidence interval, and whether two laws differ at all.

Each function takes a metric, a function of one or more sets of samples that returns a number or a tuple of numbers
(such as `prdc`); bind other arguments with a lambda or `functools.partial`. All draw rows *without* replacement.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, Shaped
from scipy.stats import t as student_t

Samples = Shaped[Array | np.ndarray, "..."]
Metric = Callable[..., Any]
"""Sets of samples -> a number, or a tuple of numbers."""


class Interval(NamedTuple):
    """A metric's value with its confidence interval; each field is a float, or an array for a tuple of numbers."""

    value: Any
    """The metric of all samples."""
    low: Any
    """Lower end; nan where all halves have one value, which tells nothing of the scatter."""
    high: Any
    """Upper end, likewise."""
    standard_error: Any
    """Estimated standard deviation of ``value`` over fresh sets of as many samples."""
    at_half: Any
    """Mean of the metric over halves of the samples: where it is far from ``value``, the metric still moves with the
    number of samples, and has a bias."""


class PermutationTest(NamedTuple):
    """A metric's value against those that it takes when the two sets are mixed."""

    value: float
    """The metric of x and y."""
    p_value: float
    """Probability, under equal laws, of a value at least as large; in ``[1 / (num_permutations + 1), 1]``."""
    null_values: np.ndarray
    """The metric of each random division of the mixed samples ``[num_permutations]``."""


def floor(
    key: Key[Array, ""], metric: Metric, data: Samples, num_x: int, num_y: int, *, num_repeats: int = 10
) -> np.ndarray:
    """Values of a metric between two fresh sets of real samples: what a perfect model would get.

    Each repeat draws num_x and num_y different rows of the data and takes the first set for generated samples. The
    mean over repeats is the floor of the metric at these numbers of samples, without bias. The spread over repeats is
    below that over fresh data, once ``num_repeats (num_x + num_y)`` exceeds the number of rows.

    No sample of the model enters: whether the model was trained on these rows is of no matter. It is the data in the
    model's *value* that must be held out, and the rows here must be of the same law as these.

    Args:
        key: draws the rows.
        metric: ``(x, y)`` -> number or tuple of numbers.
        data: different real samples ``[num, *event]``, ``num >= num_x + num_y``, of the law that the model is held
            against; copies of one row would lower the floor.
        num_x: number of generated samples in the value that the floor is for.
        num_y: number of real samples in it.
        num_repeats: number of values, >= 1.

    Returns:
        ``[num_repeats]`` in float64, or ``[num_repeats, k]`` for a metric that is a tuple of k numbers.

    Raises:
        ValueError: for too few data, numbers below one, a metric that is not finite.
    """
    if min(num_x, num_y, num_repeats) < 1:
        raise ValueError(f"num_x, num_y and num_repeats must be >= 1, got {num_x}, {num_y} and {num_repeats}")
    if len(data) < num_x + num_y:
        raise ValueError(
            f"two disjoint sets of {num_x} and {num_y} samples need {num_x + num_y} rows of data, got {len(data)}: "
            "take smaller sets, for the metric's value as well"
        )
    random, rows = generator(key), np.asarray(data)

    def draw() -> Any:
        order = random.permutation(len(rows))[: num_x + num_y]
        return metric(rows[order[:num_x]], rows[order[num_x:]])

    return finite_values("pairs of real sets", (draw() for _ in range(num_repeats)))


def confidence_interval(
    key: Key[Array, ""],
    metric: Metric,
    *samples: Samples,
    level: float = 0.95,
    num_halves: int = 100,
    bounds: tuple[Any, Any] = (-np.inf, np.inf),
) -> Interval:
    """Confidence interval of a metric over fresh draws of its samples, by half-sampling.

    ``value ± q s``, s the standard deviation of the metric over random halves of the samples, drawn without
    replacement, of each set on its own: the delete-half jackknife, in which the larger scatter of half as many samples
    and the overlap of the halves just compensate. q is the quantile of Student's t with ``num_halves - 1`` degrees of
    freedom, since s itself is estimated: with two halves the interval covers as often as with a hundred (0.95; with
    the normal quantile 0.7), but is six times as wide.

    What it covers is the *expectation of the metric at these numbers of samples*: for an unbiased metric the value
    of the laws themselves, for a biased one (w2, Frechet distance, prdc, ...) the law's value plus the bias, to be
    held against a floor at the same numbers.

    Why not the bootstrap: rows drawn with replacement contain each other's copies, of distance zero. That lowers
    distances within a set, which a U-statistic excludes on purpose (energy distance, MMD, mean pairwise distance),
    shrinks nearest-neighbour balls to nothing, and puts copies of a training row into a classifier's test set; and
    two resampled sets are farther apart in W2 than the samples are. With 60 samples in ten dimensions its intervals of
    level 0.95 cover about 0.3 for energy distance and W2. Halves have none of this.

    The interval assumes that the metric is nearly normal and nearly a mean over samples. How often intervals of level
    0.95 cover (simulated with normal laws in 2 to 64 dimensions, 40 or 50 halves):

    * distances between laws that differ, and means over samples: 0.85 to 0.94 with 12 samples, 0.89 to 0.95 with 24
      (the least for means of cubes, as in the kernel distance), 0.92 to 0.95 with 60.
    * `prdc` depends on the number of neighbours k in a half, not on the number of samples alone. Halves of at least
      ``5 k``: 0.91 to 0.99 for laws that are equal or overlap, and 0.80 to 0.92 for laws that hardly do, with s up to
      1.2 times too small. Smaller halves: intervals that are too narrow, or none. For equal laws, 12 samples and
      k = 5, precision covers 0.5 and coverage 0.2; in 0.4 and 0.8 of the cases all halves have one value.
    * `vendi_score`: s is too small where the score still grows with the number of samples, 1.3 times for 50 samples in
      ten dimensions and for 200 in 64. Halves of at least 100: 0.88 to 0.98.

    It is too wide where a metric is at its lower end and has no first-order term. For equal laws, s of an energy
    distance, squared MMD, Frechet or kernel distance is 1.4 to 1.9 times too large, and 1.1 to 1.3 times for W2 and
    sliced W2; for `prdc` up to 1.6 times. s itself has a relative error of about ``1 / sqrt(2 num_halves)``. Where the
    metric has one value in all halves (a precision of 1, say), s is 0 and there is no interval.

    Args:
        key: draws the halves.
        metric: of as many sets as are given -> number or tuple of numbers. It must take half as many samples.
        *samples: one or more sets ``[num, *event]``, at least four in each. To hold a set fixed, bind it in the
            metric.
        level: probability of covering, in (0, 1).
        num_halves: number of halves, >= 2.
        bounds: ends of the metric's range, to which the interval is clipped: numbers, or one for each number of a
            tuple, such as ``(0, (1, 1, np.inf, 1))`` for `prdc`.

    Raises:
        ValueError: for no samples, fewer than four in a set, values out of range, a metric that is not finite.

    Source: Shao and Wu, "A general theory for jackknife variance estimation", Ann. Statist. 17 (1989); upward bias:
    Efron and Stein, "The jackknife estimate of variance", Ann. Statist. 9 (1981).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if num_halves < 2:
        raise ValueError(f"num_halves must be >= 2, got {num_halves}")
    if not samples or any(len(rows) < 4 for rows in samples):
        raise ValueError(
            f"give one or more sets of at least 4 samples, got sets of {[len(rows) for rows in samples]}"
        )
    random, sets = generator(key), [np.asarray(rows) for rows in samples]

    def draw() -> Any:
        return metric(*(rows[random.permutation(len(rows))[: len(rows) // 2]] for rows in sets))

    value = finite_values("the samples", [metric(*samples)])[0]
    halves = finite_values("halves of the samples", (draw() for _ in range(num_halves)))
    error = halves.std(axis=0, ddof=1)
    reach = student_t.ppf((1 + level) / 2, num_halves - 1) * error
    # A value that rounding has put outside of the range stays within its interval.
    low, high = (
        np.minimum(np.maximum(value - reach, bounds[0]), value),
        np.maximum(np.minimum(value + reach, bounds[1]), value),
    )
    silent = np.ptp(halves, axis=0) == 0
    low, high = np.where(silent, np.nan, low), np.where(silent, np.nan, high)
    fields = (value, low, high, error, halves.mean(axis=0))
    return Interval(*(float(field) if np.ndim(field) == 0 else field for field in fields))


def permutation_test(
    key: Key[Array, ""], metric: Metric, x: Samples, y: Samples, *, num_permutations: int = 199
) -> PermutationTest:
    """Test of whether x and y come from one law, by any metric that is large when they do not.

    The metric of x and y is compared with its values after the samples have been mixed and divided at random into
    sets of the same sizes: ``p = (1 + number of values >= the one observed) / (1 + num_permutations)``. Under equal
    laws p is at most any level with at most that probability, exactly, for every metric and number of samples. A
    small p tells that the laws differ, and not by how much: with enough samples any two laws do.

    Args:
        key: draws the permutations.
        metric: ``(x, y)`` -> number: an energy distance, a squared MMD, a `classifier_accuracy`, ...
        x: generated samples ``[num_x, *event]``.
        y: real samples ``[num_y, *event]``.
        num_permutations: >= 1; p is never below ``1 / (num_permutations + 1)``.

    Raises:
        ValueError: for num_permutations below one, different events, a metric that is not one finite number.

    Source: Phipson and Smyth, "Permutation p-values should never be zero", arXiv:1603.05766.
    """
    if num_permutations < 1:
        raise ValueError(f"num_permutations must be >= 1, got {num_permutations}")
    if np.shape(x)[1:] != np.shape(y)[1:]:
        raise ValueError(
            f"x and y must be samples [num, *event] of one event shape, got x {np.shape(x)} and y {np.shape(y)}"
        )
    random, pool = generator(key), np.concatenate([np.asarray(x), np.asarray(y)])

    def draw() -> Any:
        mixed = random.permutation(pool)
        return metric(mixed[: len(x)], mixed[len(x) :])

    value = finite_values("the samples", [metric(x, y)])
    if value.shape != (1,):
        raise ValueError(f"the metric of a test must be one number, got {value[0].tolist()}")
    null_values = finite_values("the mixed samples", (draw() for _ in range(num_permutations)))
    p_value = (1 + np.sum(null_values >= value[0])) / (1 + num_permutations)
    return PermutationTest(float(value[0]), float(p_value), null_values)


def generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's random numbers, seeded by a key of JAX."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def finite_values(name: str, results: Any) -> np.ndarray:
    """Values of a metric as an array; raises ValueError if one is not finite, with the name of what it is of."""
    values = np.asarray([np.asarray(result, np.float64) for result in results])
    num_bad = int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
    if num_bad:
        raise ValueError(f"the metric is not finite in {num_bad} of {len(values)} evaluations on {name}")
    return values
