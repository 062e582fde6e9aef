"""Density ratios from samples, against the closed form between normal laws; effective sample sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from gft_jax.density_ratio import _calibrated, effective_sample_size, fit_density_ratio

MEAN, SD = 1.0, 0.8
BOUND = 0.3
"""Of the mean squared error of the log-ratio, in nats^2; the log-ratio itself has a mean square of 2.2. Over seeds and
the numbers of samples below the error is 0.01 to 0.2, most of it from the tails."""


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def truth(x):
    return np.asarray(0.5 * x**2 - 0.5 * ((x - MEAN) / SD) ** 2 - np.log(SD), np.float64)[:, 0]


def fresh():
    """Where the mass is: as many samples of either law."""
    return MEAN + SD * normal(4000, 1, seed=7), normal(4000, 1, seed=8)


def log_loss(of_target, of_base):
    return 0.5 * (np.logaddexp(0, -of_target).mean() + np.logaddexp(0, of_base).mean())


def at_fresh(found):
    return [np.asarray(found.log_ratio(jnp.asarray(rows)), np.float64) for rows in fresh()]


def mean_squared_error(ours):
    return np.mean((np.concatenate(ours) - np.concatenate([truth(rows) for rows in fresh()])) ** 2)


def test_the_ratio_of_two_normal_laws():
    found = fit_density_ratio(MEAN + SD * normal(1500, 1, seed=0), normal(1500, 1, seed=1), jax.random.key(0))
    ours = at_fresh(found)
    assert mean_squared_error(ours) < BOUND
    for wrong in (-1, 0.5, 1.6):  # power: swapped laws, an under- and an overconfident classifier
        assert mean_squared_error([wrong * values for values in ours]) > 1.5 * BOUND
    best = log_loss(*(truth(rows) for rows in fresh()))
    assert best - 0.01 < log_loss(*ours) < best + 0.01
    assert log_loss(*(1.6 * values for values in ours)) > best + 0.015  # power
    assert abs(found.log_loss - best) < 0.04  # of 375 held-out samples of each law
    # Calibrated: on fresh samples a logistic regression on the logits changes nothing.
    labels = np.repeat([1, 0], 4000)
    again = LogisticRegression(C=np.inf).fit(np.concatenate(ours)[:, None], labels)
    assert abs(again.coef_.item() - 1) < 0.3
    assert abs(again.intercept_.item()) < 0.2
    # Its gradient, which a reward needs, is that of the closed form where both laws have samples.
    x = jnp.linspace(-0.5, 1.5, 9)[:, None]
    slope = jax.jit(jax.grad(lambda x: jnp.sum(found.log_ratio(x, None))))(x)
    np.testing.assert_allclose(slope, x - (x - MEAN) / SD**2, atol=0.5)
    with pytest.raises(ValueError, match=r"events of shape \(1,\), got samples of shape \(9, 2\)"):
        found.log_ratio(jnp.zeros((9, 2)))


def test_unequal_numbers_of_samples_do_not_tilt_the_ratio():
    """A plain classifier's logit has log(n_q / n_p) in it, here -1.4."""
    found = fit_density_ratio(MEAN + SD * normal(1000, 1, seed=2), normal(4000, 1, seed=3), jax.random.key(1))
    ours = at_fresh(found)
    assert mean_squared_error(ours) < BOUND
    prior = np.log(1000 / 4000)
    assert mean_squared_error([values + prior for values in ours]) > 5 * BOUND  # power
    # Under p the ratio itself has the mean one.
    np.testing.assert_allclose(np.exp(ours[1]).mean(), 1, atol=0.15)
    assert abs(np.exp(ours[1] + prior).mean() - 1) > 0.5


def test_with_little_data_it_stops_early():
    """Thirty samples in twenty dimensions are separable: what is learned from them alone is worse than nothing."""
    equal = [normal(30, 20, seed=seed) for seed in (4, 5)]
    others = [normal(4000, 20, seed=seed) for seed in (9, 10)]
    found = fit_density_ratio(*equal, jax.random.key(0))
    assert found.num_steps < 200
    ours = log_loss(*(np.asarray(found.log_ratio(jnp.asarray(rows))) for rows in others))
    assert ours < np.log(2) + 0.1
    unstopped = LogisticRegression(C=1e3, max_iter=1000).fit(np.concatenate(equal), np.repeat([1, 0], 30))
    assert log_loss(*(unstopped.decision_function(rows) for rows in others)) > np.log(2) + 0.2  # power
    # A difference that can be learned from as few is learned.
    shift = 3 * np.eye(20, dtype=np.float32)[0]
    learned = fit_density_ratio(equal[0] + shift, equal[1], jax.random.key(0))
    moved = [np.asarray(learned.log_ratio(jnp.asarray(rows))) for rows in (others[0] + shift, others[1])]
    assert log_loss(*moved) < np.log(2) - 0.03


def test_calibration_undoes_what_was_done_to_the_logits():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal(100_000)
    is_target = rng.random(100_000) < expit(logits)
    of_target, of_base = (3 * logits[chosen] + 1 for chosen in (is_target, ~is_target))
    slope, offset, loss = _calibrated(of_target, of_base)
    # The laws count alike: the logits lose the share of the target among all samples.
    prior = np.log(is_target.mean() / (1 - is_target.mean()))
    # The error of the offset is 1 / sqrt(num mean(p (1 - p))) = 0.009, that of the slope less.
    np.testing.assert_allclose([slope, offset], [1 / 3, -1 / 3 - prior], atol=4 * 0.009)
    np.testing.assert_allclose(
        loss, log_loss(slope * of_target + offset, slope * of_base + offset), rtol=1e-9
    )
    assert loss < log_loss(of_target, of_base) - 0.1


def test_calibration_is_not_certain_from_a_few_samples():
    """Eight of each, all told apart: as if there were a ninth on the other side, and not without bound."""
    slope, offset, _ = _calibrated(np.ones(8), -np.ones(8))
    np.testing.assert_allclose([slope, offset], [np.log(9), 0], atol=1e-4)
    slope, offset, _ = _calibrated(np.ones(8), -np.ones(500))  # other numbers do not tilt it
    np.testing.assert_allclose([slope, offset], [np.log(9), 0], atol=1e-4)


def test_entries_that_never_change_and_events_of_any_rank():
    """An entry that changes by rounding alone has no say, nor has the shape of the event."""
    rows = [np.full((30, 5, 4), 0.1, np.float32) for _ in range(2)]
    rows[0][::2, 1, 1] = np.nextafter(np.float32(0.1), np.float32(1))
    rows[0][:, 0, 0], rows[1][:, 0, 0] = 3 + normal(30, seed=11), normal(30, seed=12)

    def fit(rows, seed=0):
        return fit_density_ratio(*rows, jax.random.key(seed), num_steps=60)

    found, again, other = fit(rows), fit(rows), fit(rows, seed=1)
    flat = fit([each.reshape(30, 20) for each in rows])
    at = jnp.asarray(rows[0][:5])
    np.testing.assert_array_equal(found.log_ratio(at), flat.log_ratio(at.reshape(5, 20)))
    np.testing.assert_array_equal(found.log_ratio(at), again.log_ratio(at))
    assert not np.allclose(found.log_ratio(at), other.log_ratio(at))
    assert 0 < found.num_steps <= 60
    assert np.ptp(found.log_ratio(at)) > 0.1
    np.testing.assert_allclose(found.log_ratio(at.at[:, 1].add(1e-3)), found.log_ratio(at), atol=1e-2)


def test_effective_sample_size_in_closed_form():
    np.testing.assert_allclose(effective_sample_size(np.full(7, -2000.0)), 1)
    np.testing.assert_allclose(effective_sample_size(np.array([0.0] + 9 * [-np.inf])), 0.1)
    np.testing.assert_allclose(effective_sample_size(np.log([1.0, 2.0, 3.0]) + 900), 36 / (3 * 14))
    # Log-normal weights: exp(-s^2). Over repeats, against another s as a power check.
    spread = 0.7
    sizes = np.array([effective_sample_size(spread * row) for row in normal(200, 5000, seed=0)])
    error = sizes.std(ddof=1) / np.sqrt(len(sizes))
    assert abs(sizes.mean() - np.exp(-(spread**2))) < 4 * error
    assert abs(sizes.mean() - np.exp(-(0.71**2))) > 6 * error


@pytest.mark.parametrize(
    "weights",
    [np.zeros(0), np.zeros((2, 2)), np.array([0, np.nan]), np.array([0, np.inf]), np.full(3, -np.inf)],
)
def test_log_weights_without_a_sense_are_refused(weights, without_hook):
    with pytest.raises(ValueError, match=r"log_weights must be \[num\]"):
        effective_sample_size(weights)


GOOD = normal(20, 2, seed=0)


@pytest.mark.parametrize(
    ("target", "base", "settings", "message"),
    [
        (GOOD[:19], GOOD, {}, r"target must hold at least 20 samples, got shape \(19, 2\)"),
        (GOOD, GOOD[0, 0], {}, r"base must hold at least 20 samples, got shape \(\)"),
        (
            GOOD,
            np.where(np.arange(20) == 3, np.nan, GOOD.T).T,
            {},
            r"base has 1 of 20 .* \(the first: \[3\]\)",
        ),
        (GOOD, GOOD[:, :1], {}, r"events of one shape, got \(2,\) and \(1,\)"),
        (GOOD, GOOD, {"hidden": 0}, "hidden must be >= 1, got 0"),
        (GOOD, GOOD, {"depth": 0}, "depth must be >= 1, got 0"),
        (GOOD, GOOD, {"num_steps": 0}, "num_steps must be >= 1, got 0"),
        (GOOD, GOOD, {"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        (GOOD, GOOD, {"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        (GOOD, GOOD, {"held_out": 1.0}, r"held_out must be in \(0, 1\), got 1.0"),
    ],
)
def test_wrong_input_is_refused(target, base, settings, message, without_hook):
    with pytest.raises(ValueError, match=message):
        fit_density_ratio(target, base, jax.random.key(0), **settings)
