import jax
import numpy as np
import pytest
from samples import normal, z_score

from gft_jax.metrics import (
    Prdc,
    confidence_interval,
    energy_distance,
    floor,
    mean_pairwise_distance,
    permutation_test,
    prdc,
    w2,
)

KEY = jax.random.key(0)


def difference_of_means(x, y):
    return abs(np.mean(x) - np.mean(y))


# Floors


def test_a_floor_is_between_disjoint_sets_of_the_data():
    data = np.arange(12.0)
    pairs = []

    def metric(x, y):
        assert (len(x), len(y)) == (5, 7)
        pairs.append((*x, *y))
        return x[0], y[0]

    values = floor(KEY, metric, data, 5, 7, num_repeats=3)
    assert values.shape == (3, 2)
    assert all(sorted(pair) == list(data) for pair in pairs)
    assert len(set(pairs)) == 3
    np.testing.assert_array_equal(floor(KEY, metric, data, 5, 7, num_repeats=3), values)
    assert np.any(floor(jax.random.key(1), metric, data, 5, 7, num_repeats=3) != values)


def test_the_floor_of_a_biased_metric_is_its_value_for_a_perfect_model():
    data = normal(300, 40, 2)
    means = [np.mean(floor(KEY, w2, rows, 10, 10, num_repeats=5)) for rows in data]
    perfect = [w2(x, y) for x, y in normal(1000, 2, 10, 2, seed=1)]
    assert abs(z_score(means, np.mean(perfect))) < 3
    assert abs(z_score(means, 0.9 * np.mean(perfect))) > 5


def test_a_floor_needs_data():
    data = normal(10, 2)
    with pytest.raises(ValueError, match=r"sets of 6 and 5 samples need 11 rows of data, got 10"):
        floor(KEY, energy_distance, data, 6, 5)
    with pytest.raises(ValueError, match=r"must be >= 1, got 5, 5 and 0"):
        floor(KEY, energy_distance, data, 5, 5, num_repeats=0)
    with pytest.raises(ValueError, match=r"not finite in 3 of 3 evaluations on pairs of real sets"):
        floor(KEY, lambda x, y: np.nan, data, 5, 5, num_repeats=3)


# Confidence intervals


def test_the_standard_error_of_a_mean_is_the_usual_one():
    """Over all halves of 2 m samples, the variance of the mean is exactly that of the samples over 2 m."""
    x, num_halves = normal(50), 4000
    found = confidence_interval(KEY, np.mean, x, num_halves=num_halves)
    usual = np.std(x, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(found.standard_error, usual, rtol=4 / np.sqrt(2 * num_halves))
    np.testing.assert_allclose(found.value, x.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.at_half, x.mean(), atol=4 * usual / np.sqrt(num_halves))
    np.testing.assert_allclose(
        (found.low, found.high), found.value + np.array([-1, 1]) * 1.96056 * found.standard_error, rtol=1e-4
    )
    narrow = confidence_interval(KEY, np.mean, x, num_halves=num_halves, level=0.5)
    np.testing.assert_allclose(
        (narrow.high - narrow.low) / (found.high - found.low), 0.67453 / 1.96056, rtol=1e-4
    )


def test_halves_have_no_copies_and_no_pairs():
    x, y = np.arange(9.0), np.arange(9.0)
    same = []

    def metric(a, b):
        same.append(len(a) == 4 and np.array_equal(a, b))
        assert len(set(a)) == len(a)
        return 0.0, len(b)

    found = confidence_interval(KEY, metric, x, y, num_halves=20)
    assert not any(same)  # the sets are halved each on its own
    np.testing.assert_array_equal(found.at_half, [0, 4])
    np.testing.assert_array_equal(found.standard_error, [0, 0])
    # One value in all halves tells nothing of the scatter.
    np.testing.assert_array_equal((found.low, found.high), np.full((2, 2), np.nan))


def test_few_halves_have_wide_intervals():
    """Of 400 means of normal samples about 95 % are covered by two halves; by the normal quantile it would be 0.7."""
    sets = normal(400, 40)
    found = [confidence_interval(jax.random.key(i), np.mean, x, num_halves=2) for i, x in enumerate(sets)]
    value, low, high, error, _ = np.transpose(found)
    scatter = np.sqrt(0.05 * 0.95 / 400)
    assert abs(coverage(low, high, 0.0) - 0.95) < 3 * scatter
    assert coverage(value - 1.96 * error, value + 1.96 * error, 0.0) < 0.95 - 10 * scatter


def test_an_interval_ends_where_the_metric_does():
    def mean_twice(a):
        return np.mean(a), np.mean(a)

    x = normal(20)
    free = confidence_interval(KEY, mean_twice, x, num_halves=10)
    least, most = free.value[0] - 0.01, free.value[0] + 0.01
    assert free.low[0] < least < most < free.high[0]
    found = confidence_interval(KEY, mean_twice, x, num_halves=10, bounds=(least, (np.inf, most)))
    np.testing.assert_array_equal(found.low, [least, least])
    np.testing.assert_array_equal(found.high, [free.high[0], most])
    # A value that rounding has put outside.
    below = confidence_interval(KEY, np.mean, x, num_halves=10, bounds=(free.value[0] + 1e-9, np.inf))
    assert below.low == below.value == free.value[0]


def test_an_interval_of_several_metrics_at_once():
    x, y = normal(30, 2), normal(40, 2, seed=1)
    found = confidence_interval(KEY, prdc, x, y, num_halves=10)
    np.testing.assert_allclose(found.value, prdc(x, y))
    recall = confidence_interval(KEY, lambda a, b: prdc(a, b).recall, x, y, num_halves=10)
    np.testing.assert_allclose(recall, [field[Prdc._fields.index("recall")] for field in found])


def test_an_interval_checks_what_it_is_given():
    x = normal(6, 2)
    with pytest.raises(ValueError, match=r"at least 4 samples, got sets of \[6, 3\]"):
        confidence_interval(KEY, energy_distance, x, x[:3])
    with pytest.raises(ValueError, match=r"at least 4 samples, got sets of \[\]"):
        confidence_interval(KEY, energy_distance)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95.0"):
        confidence_interval(KEY, energy_distance, x, x, level=95.0)
    with pytest.raises(ValueError, match=r"num_halves must be >= 2, got 1"):
        confidence_interval(KEY, energy_distance, x, x, num_halves=1)
    with pytest.raises(ValueError, match=r"not finite in 5 of 5 evaluations on halves of the samples"):
        confidence_interval(KEY, lambda a: 0.0 if len(a) == 6 else np.inf, x, num_halves=5)
    with pytest.raises(ValueError, match=r"x has 3 samples .* needs at least 6"):
        confidence_interval(KEY, prdc, x, x)  # a half is too small for five neighbours


def pairs(repeats, num, d, shift, seed=0):
    x, y = normal(2, repeats, num, d, seed=seed)
    return list(zip(x + shift * np.eye(d)[0], y, strict=True))


def intervals(metric, sets, num_halves=100):
    return [
        confidence_interval(jax.random.key(i), metric, x, y, num_halves=num_halves)
        for i, (x, y) in enumerate(sets)
    ]


def coverage(lows, highs, expected):
    return np.mean((np.array(lows) <= expected) & (expected <= np.array(highs)))


@pytest.mark.slow
@pytest.mark.parametrize("metric", [energy_distance, w2])
def test_intervals_cover_the_expectation_of_the_metric(metric):
    """Nominally 95 % of 500 intervals, with a standard error of 1 %; intervals half as wide are refused."""
    expected = np.mean([metric(x, y) for x, y in pairs(8000, 60, 2, 1.0, seed=1)])
    found = intervals(metric, pairs(500, 60, 2, 1.0))
    value, low, high, error, _ = np.transpose(found)
    assert 0.91 < coverage(low, high, expected) < 0.98
    assert coverage(value - error, value + error, expected) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_intervals_of_nearest_neighbours_cover_from_halves_of_25_on(shift):
    """Five neighbours, 400 intervals: at least 0.93 (of 1200 others), less three standard errors of 0.013. In halves
    of six most values are alike."""

    def covered(num):
        expected = np.mean([prdc(x, y) for x, y in pairs(4000, num, 2, shift, seed=1)], axis=0)
        found = intervals(prdc, pairs(400, num, 2, shift), num_halves=40)
        low, high = (np.array([getattr(interval, end) for interval in found]) for end in ("low", "high"))
        return [coverage(low[:, i], high[:, i], expected[i]) for i in range(4)]

    assert min(covered(50)) > 0.93 - 3 * 0.013
    assert min(covered(12)) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "shift"), [(energy_distance, 0.5), (w2, 1.0)])
def test_intervals_cover_where_resampling_with_replacement_does_not(metric, shift):
    """In ten dimensions the copies of a bootstrap sample matter more than the scatter."""
    expected = np.mean([metric(x, y) for x, y in pairs(2000, 60, 10, shift, seed=1)])
    sets, random = pairs(150, 60, 10, shift), np.random.default_rng(2)
    found = intervals(metric, sets, num_halves=60)
    _, low, high, _, _ = np.transpose(found)
    assert coverage(low, high, expected) > 0.93

    def bootstrap(x, y):
        draws = (rows[random.integers(60, size=(60, 60))] for rows in (x, y))
        return np.quantile([metric(*pair) for pair in zip(*draws, strict=True)], [0.025, 0.975])

    low, high = np.transpose([bootstrap(x, y) for x, y in sets])
    assert coverage(low, high, expected) < 0.6


@pytest.mark.slow
def test_intervals_near_equal_laws_are_too_wide_by_the_root_of_three():
    """At equal laws the energy distance has no first-order term, and halves overestimate its variance threefold."""
    spread = np.std([energy_distance(x, y) for x, y in pairs(4000, 40, 2, 0.0, seed=1)])
    errors = [found.standard_error for found in intervals(energy_distance, pairs(600, 40, 2, 0.0), 40)]
    assert 1.6 < np.sqrt(np.mean(np.square(errors))) / spread < 1.9


# Permutation tests


def test_p_values_are_uniform_under_equal_laws():
    """With 9 permutations p takes the values 0.1, 0.2, ..., 1 equally often."""
    p_values = [
        permutation_test(jax.random.key(i), difference_of_means, x, y, num_permutations=9).p_value
        for i, (x, y) in enumerate(zip(normal(1000, 6), normal(1000, 9, seed=1), strict=True))
    ]
    shares = np.bincount(np.round(10 * np.array(p_values)).astype(int), minlength=11) / 1000
    assert shares[0] == 0
    assert np.all(np.abs(shares[1:] - 0.1) < 4 * np.sqrt(0.09 / 1000))


def test_a_permutation_test_finds_a_difference():
    x, y = 1.5 + normal(20, 1), normal(30, 1, seed=1)
    found = permutation_test(KEY, energy_distance, x, y, num_permutations=49)
    assert found.value == energy_distance(x, y)
    assert found.null_values.shape == (49,)
    assert found.p_value == pytest.approx(1 / 50)
    # Ties count against the difference.
    assert permutation_test(KEY, lambda a, b: 1.0, x, y, num_permutations=9).p_value == 1


def test_a_permutation_test_mixes_and_divides():
    x, y = np.arange(4.0), np.arange(4.0, 10.0)

    def metric(a, b):
        assert (len(a), len(b)) == (4, 6)
        assert sorted((*a, *b)) == list(range(10))
        return np.mean(a)

    null_values = permutation_test(KEY, metric, x, y, num_permutations=200).null_values
    assert abs(z_score(null_values, 4.5)) < 3


def test_a_permutation_test_checks_what_it_is_given():
    x = normal(6, 2)
    with pytest.raises(ValueError, match=r"num_permutations must be >= 1, got 0"):
        permutation_test(KEY, energy_distance, x, x, num_permutations=0)
    with pytest.raises(ValueError, match=r"one event shape, got x \(6, 2\) and y \(6, 1\)"):
        permutation_test(KEY, energy_distance, x, x[:, :1])
    with pytest.raises(ValueError, match=r"must be one number, got \["):
        permutation_test(KEY, lambda a, b: prdc(a, b, num_neighbours=1), x, x)
    with pytest.raises(ValueError, match=r"not finite in 1 of 1 evaluations on the samples"):
        permutation_test(KEY, lambda a, b: np.inf, x, x)


def test_metrics_of_one_set_have_intervals_too():
    found = confidence_interval(KEY, mean_pairwise_distance, normal(40, 2), num_halves=50)
    # E|x - y| of normal vectors in the plane is the root of pi.
    assert found.low < np.sqrt(np.pi) < found.high
    assert found.high - found.low < 1
