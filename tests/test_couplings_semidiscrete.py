"""Semi-discrete coupling: quantile cells on the line, marginals, choices, streams, saved potentials, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ends import brute_cost

from gft_jax.checkpoints import load_params, save_params
from gft_jax.couplings import (
    SemidiscretePotentials,
    choose,
    exact,
    fit_semidiscrete,
    require_converged,
    semidiscrete,
)
from gft_jax.pairing import batches, chosen_batches

NUM = 20
LINE = np.sort(np.random.default_rng(0).normal(size=(NUM, 1)), axis=0).astype(np.float32)
GRID = (np.arange(100_000) + 0.5)[:, None] / 100_000
"""Quadrature points of the uniform law."""


def uniform(keys):
    return jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys), None


def fit(x1, epsilon):
    return fit_semidiscrete(jax.random.key(0), x1, uniform, epsilon=epsilon, num_steps=400, batch_size=256)


@functools.cache
def fitted(epsilon):
    return fit(LINE, epsilon)


def law(dual, epsilon):
    """Probabilities [x0 on the grid, row of data] in float64."""
    score = np.asarray(dual, np.float64) - brute_cost(GRID, LINE)
    if epsilon == 0:
        return np.eye(NUM)[score.argmax(axis=1)]
    weight = np.exp((score - score.max(axis=1, keepdims=True)) / epsilon)
    return weight / weight.sum(axis=1, keepdims=True)


def chi(marginal):
    return np.sqrt(NUM * np.sum((marginal - 1 / NUM) ** 2))


def nearest_marginal():
    return law(np.zeros(NUM), 0).mean(axis=0)


def z_of_error(potentials, marginal):
    """The estimate of the squared marginal error from 16384 rows against the true one, in standard errors."""
    own = np.sqrt(2 * NUM) / 16_384 + 2 * chi(marginal) / np.sqrt(16_384)
    return abs(float(potentials.marginal_error) ** 2 - chi(marginal) ** 2) / own


def test_the_cells_of_sorted_data_are_the_quantiles_of_the_source():
    """In one dimension the optimal map is monotone: row k gets the source between its quantiles k/num, (k + 1)/num."""
    potentials = require_converged(fitted(0.0))
    y, g = LINE[:, 0].astype(np.float64), np.asarray(potentials.dual, np.float64)
    borders = np.diff(y**2 - g) / 2 / np.diff(y)  # where both neighbours score the same
    np.testing.assert_allclose(borders, np.arange(1, NUM) / NUM, atol=0.4 / NUM)

    marginal = law(g, 0).mean(axis=0)
    l1 = np.abs(marginal - 1 / NUM).sum()
    assert l1 <= chi(marginal) < 0.1
    assert np.abs(nearest_marginal() - 1 / NUM).sum() > 1  # power: without potentials x0 gets its nearest row
    assert z_of_error(potentials, marginal) < 4
    assert z_of_error(potentials, nearest_marginal()) > 6  # power

    # The dual value bounds the cost of optimal transport from below, and is equal to it at the optimal potentials.
    w2_squared = np.mean((GRID - np.repeat(LINE, len(GRID) // NUM, axis=0)) ** 2)
    squared = brute_cost(GRID, LINE)
    assert 0 <= w2_squared - ((squared - g).min(axis=1).mean() + g.mean()) < 0.005 * w2_squared
    cost = np.sum(law(g, 0) * squared, axis=1)
    assert abs(cost.mean() / w2_squared - 1) < 0.05
    error = cost.std() / np.sqrt(16_384)
    assert abs(float(potentials.cost) - cost.mean()) < 4 * error
    assert squared.mean() - cost.mean() > 8 * error  # power: the independent coupling


def test_with_an_epsilon_rows_are_drawn_from_the_entropic_law_and_it_has_the_marginal():
    potentials = require_converged(fitted(0.05))
    epsilon = float(potentials.epsilon)
    np.testing.assert_allclose(epsilon, 0.05 * brute_cost(GRID, LINE).mean(), rtol=0.02)
    at_grid = law(potentials.dual, epsilon)
    marginal = at_grid.mean(axis=0)
    assert chi(marginal) < 0.1
    assert z_of_error(potentials, marginal) < 4

    x0 = np.full((4000, 1), GRID[30_000], np.float32)
    pairing = choose(jax.random.key(1), potentials, x0, LINE)
    expected = at_grid[30_000]
    counts = np.bincount(pairing.target_index, minlength=NUM)

    def largest_z(law):
        return np.abs((counts - 4000 * law) / np.sqrt(4000 * law * (1 - law) + 1e-2)).max()

    assert largest_z(expected) < 4
    assert largest_z(np.roll(expected, 1)) > 6  # power
    np.testing.assert_allclose(pairing.cost, expected @ brute_cost(GRID[30_000:30_001], LINE)[0], rtol=1e-3)
    np.testing.assert_allclose(pairing.entropy, -np.sum(expected * np.log(expected + 1e-300)), rtol=1e-3)


def test_what_is_chosen_scores_best_and_is_the_same_under_jit_and_in_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    x0, x1 = (rng.normal(size=(rows, 2, 3)).astype(np.float32) for rows in (17, 12))
    dual = rng.normal(size=12).astype(np.float32)
    potentials = potentials_of(dual, x1)
    eager = choose(jax.random.key(0), potentials, x0, x1)
    score = dual - brute_cost(x0, x1)
    np.testing.assert_array_equal(eager.target_index, score.argmax(axis=1))
    np.testing.assert_array_equal(eager.source_index, np.arange(17))
    np.testing.assert_allclose(
        eager.cost, brute_cost(x0, x1)[np.arange(17), eager.target_index].mean(), rtol=1e-5
    )
    assert eager.converged
    drawn = potentials._replace(epsilon=jnp.asarray(2.0))
    monkeypatch.setattr(semidiscrete, "MAX_HELD", 5 * 12)  # four chunks, the last of two rows
    in_chunks = jax.jit(lambda *args: semidiscrete._choose.__wrapped__(*args))
    for each in (potentials, drawn):
        flat = (jnp.asarray(x).reshape(len(x), 6) for x in (x0, x1))
        whole = jax.jit(choose)(jax.random.key(0), each, x0, x1)
        for ours, theirs in zip(whole, in_chunks(jax.random.key(0), each, *flat), strict=True):
            if ours is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # A choice is its own: fewer rows choose the same.
    few = choose(jax.random.key(0), drawn, x0[:5], x1)
    np.testing.assert_array_equal(few.target_index, choose(jax.random.key(0), drawn, x0, x1).target_index[:5])
    assert not choose(jax.random.key(0), potentials, x0 * np.nan, x1).converged
    with pytest.raises(ValueError, match="not finite"):
        require_converged(choose(jax.random.key(0), potentials, x0 * np.nan, x1))


def potentials_of(dual, x1):
    flat = jnp.asarray(x1).reshape(len(x1), -1)
    scalars = jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.asarray(True)
    return SemidiscretePotentials(jnp.asarray(dual), semidiscrete.marks(flat), *scalars)


def test_a_choice_depends_on_no_other_row():
    rng = np.random.default_rng(0)
    x0, x1 = rng.standard_normal((2, 16, 2)).astype(np.float32)
    num = len(x1)
    potentials = SemidiscretePotentials(
        jnp.zeros(num), jnp.zeros(num), jnp.zeros(()), jnp.ones(()), jnp.zeros(()), jnp.array(True)
    )
    chosen = choose(jax.random.key(0), potentials, x0, x1)
    for value in (1e5, np.nan):
        x0[0] = value
        other = choose(jax.random.key(0), potentials, x0, x1)
        np.testing.assert_array_equal(other.target_index[1:], chosen.target_index[1:])


def test_a_stream_draws_x0_as_ever_and_moves_whole_rows_of_data():
    label = np.arange(NUM) + 100
    stream = chosen_batches(LINE, fitted(0.0), batch_size=64, seed=3, source=uniform, cond=label)
    plain = batches(LINE, batch_size=64, seed=3, source=uniform, cond=label)
    batch, reference, pairing = stream.batch(5), plain.batch(5), stream.pairing(5)
    np.testing.assert_array_equal(batch.x0, reference.x0)
    np.testing.assert_array_equal(jax.random.key_data(batch.key), jax.random.key_data(reference.key))
    np.testing.assert_array_equal(batch.x1, LINE[pairing.target_index])
    np.testing.assert_array_equal(batch.cond, label[pairing.target_index])
    assert pairing.converged
    np.testing.assert_array_equal(pairing.marginal_error, fitted(0.0).marginal_error)
    many = stream.many(4, 250)
    for ours, theirs in zip((many.x0, many.x1, many.cond), (batch.x0, batch.x1, batch.cond), strict=True):
        np.testing.assert_array_equal(ours[1], theirs)

    # Over many steps the rows of data are used alike, and the cost is that of the potentials.
    counts = np.bincount(np.asarray(many.cond).ravel() - 100, minlength=NUM)
    expected = law(fitted(0.0).dual, 0).mean(axis=0)
    draws = counts.sum()
    assert np.abs((counts - draws * expected) / np.sqrt(draws * expected)).max() < 4
    cost = np.asarray((many.x0 - many.x1) ** 2).sum(axis=-1)
    error = cost.std() / np.sqrt(cost.size)
    assert (
        abs(cost.mean() - np.sum(law(fitted(0.0).dual, 0) * brute_cost(GRID, LINE), axis=1).mean())
        < 4 * error
    )
    small = batches(LINE, batch_size=8, seed=3, source=uniform, coupling=exact()).many(0, 1000)
    of_batches = np.asarray((small.x0 - small.x1) ** 2).sum(axis=(1, 2)) / 8
    error = np.hypot(of_batches.std() / np.sqrt(1000), error)
    assert (
        of_batches.mean() - cost.mean() > 4 * error
    )  # optimal pairs of a batch cost more than those of the laws

    found = stream.diagnose(5)
    np.testing.assert_allclose(found.excess, 0, atol=1e-4)  # no other pairing of these rows costs less
    np.testing.assert_allclose(found.distinct_targets, len(set(np.asarray(batch.cond))) / 64)


def test_conditions_are_dropped_as_in_other_streams():
    options = {"batch_size": 64, "seed": 3, "source": uniform, "cond": np.arange(NUM)}
    options |= {"num_classes": NUM, "cond_dropout": 0.5, "null_cond": NUM}
    chosen, plain = (
        np.asarray(stream.batch(2).cond)
        for stream in (chosen_batches(LINE, fitted(0.0), **options), batches(LINE, **options))
    )
    np.testing.assert_array_equal(chosen == NUM, plain == NUM)
    assert 10 < np.sum(chosen == NUM) < 54


def test_restored_potentials_give_the_same_batches_bit_for_bit(tmp_path):
    potentials = fitted(0.05)
    save_params(tmp_path / "coupling", potentials)
    restored = load_params(tmp_path / "coupling", jax.eval_shape(lambda: potentials))
    for ours, theirs in zip(potentials, restored, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (
        chosen_batches(LINE, each, batch_size=16, seed=1, source=uniform).many(7, 2)
        for each in (potentials, restored)
    )
    np.testing.assert_array_equal(ours.x0, theirs.x0)
    np.testing.assert_array_equal(ours.x1, theirs.x1)


def test_potentials_of_other_data_are_refused():
    options = {"batch_size": 4, "seed": 0, "source": uniform}
    with pytest.raises(ValueError, match="those of 20 rows, and the dataset has 19: give the dataset"):
        chosen_batches(LINE[1:], fitted(0.0), **options)
    with pytest.raises(ValueError, match="those of 20 rows, and the dataset has 19: give the dataset"):
        choose(jax.random.key(0), fitted(0.0), LINE, LINE[1:])
    for other in (LINE[::-1], -LINE):
        with pytest.raises(
            ValueError, match="another dataset, or of these rows in another order: 20 of 20 rows"
        ):
            chosen_batches(other, fitted(0.0), **options)
    with pytest.raises(ValueError, match=r"got x0 \(3, 2\) and x1 \(20, 1\)"):
        choose(jax.random.key(0), fitted(0.0), np.zeros((3, 2), np.float32), LINE)


def test_what_does_not_converge_is_reported_with_the_remedy():
    """Without an epsilon no x0 is shared between two rows that are the same point; with one they have equal shares."""
    twice = np.repeat(LINE[::2], 2, axis=0)
    potentials = fit(twice, 0.0)
    assert not potentials.converged
    np.testing.assert_allclose(potentials.marginal_error, 1, atol=0.1)  # one of two has it all
    with pytest.raises(ValueError, match=r"Raise num_steps .* or epsilon .* or tolerance"):
        require_converged(potentials)
    pairing = choose(jax.random.key(0), potentials, LINE, twice)
    with pytest.raises(ValueError, match="num_steps of semi-discrete potentials"):
        require_converged(pairing)
    require_converged(fit(twice, 0.05))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x1": np.zeros((0, 1), np.float32)}, "num >= 1, got shape"),
        ({"x1": np.zeros((3, 1), np.int32)}, "must be floating-point rows"),
        ({"x1": np.array([[0.0], [np.nan]], np.float32)}, r"in 1 of 2 rows \(the first: \[1\]\)"),
        ({"x1": np.zeros((3, 2), np.float32)}, r"x0 rows have \(1,\), x1 rows have \(2,\)"),
        ({"epsilon": -0.1}, "epsilon must be >= 0 and finite, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be >= 0"),
        ({"tolerance": 0.0}, r"in \(0, 2\), got 0.0"),
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"batch_size": 2**24}, "At most 268435456 are allowed: give batch_size <= 13421772"),
    ],
)
def test_bad_input_is_refused_before_the_fit(change, message):
    options = {"x1": LINE, "source": uniform} | change
    with pytest.raises(ValueError, match=message):
        fit_semidiscrete(jax.random.key(0), **options)


def test_a_source_of_rows_that_are_not_finite_is_refused():
    def source(keys):
        return jnp.full((len(keys), 1), jnp.nan), None

    with pytest.raises(ValueError, match="the source draws rows that are not finite"):
        fit_semidiscrete(jax.random.key(0), LINE[:2], source, num_steps=1, batch_size=2)


def test_too_many_rows_for_a_matrix_are_told_of_the_semi_discrete_coupling():
    rows = np.zeros((16_385, 1), np.float32)
    with pytest.raises(ValueError, match=r"fit_semidiscrete and gft_jax\.pairing\.chosen_batches"):
        exact()(jax.random.key(0), rows, rows)
