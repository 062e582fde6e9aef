"""Entropic couplings: pairs drawn from the plan, one-to-one pairs, the schedule of epsilon, relaxed marginals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ends import brute_cost, entropic_plan, largest_z, two_ends
from scipy.special import logsumexp, ndtri

from gft_jax.couplings import drawn, exact, one_to_one, require_converged, sinkhorn, unbalanced
from gft_jax.couplings.rounding import Plan

KEY = jax.random.key(7)
default = functools.cache(sinkhorn)


def test_sinkhorn_draws_partners_from_the_columns_of_the_plan():
    """The law of each partner against a plan computed here; partners drawn from its rows, or uniformly, fail."""
    rows, num_keys = 5, 4000
    x0, x1 = two_ends(rows=rows, event=(2,))
    cost = brute_cost(x0, x1)
    keys = jax.random.split(KEY, num_keys)
    pairing = jax.jit(jax.vmap(sinkhorn(0.3, threshold=1e-6), (0, None, None)))(keys, x0, x1)
    plan = entropic_plan(cost, 0.3 * cost.mean())
    np.testing.assert_allclose(pairing.cost, (plan * cost).sum(), rtol=1e-4)
    assert pairing.converged.all()
    assert (pairing.marginal_error < 3e-6).all()
    np.testing.assert_allclose(pairing.entropy, -(plan * np.log(plan * rows)).sum(), rtol=1e-3)
    index = np.asarray(pairing.source_index)
    assert largest_z(index, plan * rows) < 4
    assert largest_z(index, plan.T * rows) > 6
    assert largest_z(index, np.full((rows, rows), 1 / rows)) > 6
    # Each partner has a key of its own: the draws of two columns are independent.
    first, second = (index[:, j] == np.argmax(plan[:, j]) for j in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(num_keys)


def test_sinkhorn_between_equal_gaussians_has_its_closed_form():
    """N(0, 1) to itself: the entropic plan is Gaussian, of correlation c with c / (1 - c^2) = 2 / epsilon."""
    rows, epsilon = 256, 1.0
    x = ndtri((np.arange(rows) + 0.5) / rows)  # quantiles in place of random rows
    x = jnp.asarray(x / x.std(), jnp.float32)
    cost = sinkhorn(absolute_epsilon=epsilon, threshold=1e-5)(KEY, x, x).cost

    def closed_form(epsilon):
        return 2 - (np.sqrt(epsilon**2 + 16) - epsilon) / 2

    np.testing.assert_allclose(cost, closed_form(epsilon), rtol=2e-3)
    assert abs(cost - closed_form(epsilon / 2)) > 0.1  # the convention of half the squared distance


@pytest.mark.parametrize("rounding", [drawn, one_to_one])
def test_small_epsilon_approaches_the_exact_assignment(rounding):
    x0, x1 = two_ends()
    optimal = exact()(KEY, x0, x1)
    entropic = sinkhorn(1e-3, max_iterations=20_000, rounding=rounding)(KEY, x0, x1)
    assert entropic.converged
    np.testing.assert_array_equal(entropic.source_index, optimal.source_index)
    np.testing.assert_allclose(entropic.cost, optimal.cost, rtol=2e-3)
    blurred = default()(KEY, x0, x1)
    assert blurred.cost > 1.02 * optimal.cost


def test_too_small_an_epsilon_is_reported_with_the_remedy():
    x0, x1 = two_ends(rows=64, event=(2,))
    pairing = sinkhorn(1e-3, max_iterations=1)(KEY, x0, x1)
    assert not pairing.converged
    assert pairing.marginal_error > 1e-2
    with pytest.raises(
        ValueError, match=r"not converged \(marginal error .*\): raise epsilon .* max_iterations"
    ):
        require_converged(pairing)
    remedied = sinkhorn(1e-3, max_iterations=20_000)(KEY, x0, x1)
    assert require_converged(remedied) is remedied
    with pytest.raises(ValueError, match=r"found no plan \(cost nan.* not finite"):
        require_converged(default()(KEY, x0 * np.nan, x1))


def test_sinkhorn_of_coinciding_points():
    pairing = default()(KEY, jnp.ones((12, 2, 3)), jnp.ones((12, 2, 3)))
    assert pairing.converged
    assert pairing.cost == 0
    assert len(set(np.asarray(pairing.source_index).tolist())) > 1


def test_sinkhorn_checks_its_hyperparameters():
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^epsilon must be positive and finite, got"):
            sinkhorn(value)
        with pytest.raises(ValueError, match=r"absolute_epsilon must be positive and finite, got"):
            sinkhorn(absolute_epsilon=value)
        with pytest.raises(ValueError, match=r"threshold must be positive and finite, got"):
            sinkhorn(threshold=value)
    with pytest.raises(ValueError, match=r"not both: got epsilon=0.1 and absolute_epsilon=2.0"):
        sinkhorn(0.1, absolute_epsilon=2.0)
    with pytest.raises(ValueError, match=r"max_iterations must be >= 1, got 0"):
        sinkhorn(max_iterations=0)


def test_an_outlier_and_a_small_epsilon_leave_the_range_of_float32():
    """As a plan in the log domain, in float64; its kernel itself has rows that are zero in float32."""
    x0, x1 = two_ends(rows=32, event=(2,))
    x1[0] = 1e4
    cost = brute_cost(x0, x1)
    scaled = cost / cost.mean() / 0.01
    f, g = np.zeros(32), np.zeros(32)
    for _ in range(200):
        g = -logsumexp(f[:, None] - scaled, axis=0)
        f = -logsumexp(g[None, :] - scaled, axis=1)
    plan = np.exp(f[:, None] + g[None, :] - scaled) / 32
    assert (np.exp(-scaled.astype(np.float32)).sum(axis=0) == 0).any()
    pairing = sinkhorn(0.01)(KEY, x0, x1)
    assert pairing.converged
    np.testing.assert_allclose(pairing.cost, (plan * cost).sum(), rtol=1e-4)
    law = plan / plan.sum(axis=0)
    entropy = -np.sum(law * np.log(law, where=law > 0, out=np.zeros_like(law)), axis=0).mean()
    np.testing.assert_allclose(pairing.entropy, entropy, rtol=1e-3)


def test_a_plan_that_float32_cannot_hold_is_not_called_converged():
    x0, x1 = two_ends(rows=64, event=(2,))
    pairing = sinkhorn(1e-5)(KEY, x0, x1)
    assert pairing.marginal_error > 2e-3
    assert not pairing.converged


@pytest.mark.parametrize("distance", [30.0, 1e3])
def test_unbalanced_at_its_defaults_leaves_out_an_outlier_whatever_its_distance(distance):
    rng = np.random.default_rng(0)
    x0, x1 = rng.standard_normal((2, 128, 2)).astype(np.float32)
    x1[0] = distance
    pairing = unbalanced()(KEY, x0, x1)
    assert pairing.converged
    assert pairing.weight[0] < 1e-6
    assert np.asarray(pairing.weight)[1:].min() > 0.2


@pytest.mark.parametrize(("target_penalty", "epsilon"), [(0.001, 1.0), (0.05, 0.05)])
def test_small_penalties_give_the_plan_of_the_formula(target_penalty, epsilon):
    x0, x1 = two_ends(rows=24, event=(2,))
    cost = brute_cost(x0, x1)
    plan = entropic_plan(cost / cost.mean(), epsilon, np.inf, target_penalty)
    pairing = unbalanced(target_penalty, epsilon=epsilon)(KEY, x0, x1)
    assert pairing.converged
    np.testing.assert_allclose(pairing.weight, 24 * plan.sum(axis=0) / plan.sum(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(("epsilon", "max_iterations"), [(0.05, 48), (0.01, 200)])
def test_few_iterations_suffice(epsilon, max_iterations):
    x0, x1 = two_ends(rows=64, event=(2,))
    pairing = sinkhorn(epsilon, max_iterations=max_iterations)(KEY, x0, x1)
    assert pairing.converged
    cost = brute_cost(x0, x1)
    plan = entropic_plan(cost, epsilon * cost.mean())
    np.testing.assert_allclose(pairing.cost, (plan * cost).sum(), rtol=1e-3)


def test_one_to_one_pairs_are_drawn_from_the_plan_without_repetition():
    """Against the law of drawing partners from what is left, over all orders of x1; uniform permutations fail."""
    rows, num_keys = 3, 16_000
    plan = np.array([[0.25, 0.05, 0.033], [0.05, 0.133, 0.15], [0.033, 0.15, 0.15]])

    def law(free0, free1):
        """Probability of each pair [x0, x1] among the rows that are left."""
        found = np.zeros_like(plan)
        for j in free1:
            for i in free0:
                rest = law([k for k in free0 if k != i], [k for k in free1 if k != j])
                rest[i, j] = 1
                found += plan[i, j] / plan[free0, j].sum() / len(free1) * rest
        return found

    ends = jnp.zeros((rows, 1))
    given = Plan(jnp.log(plan.T), jnp.zeros((rows, rows)), jnp.array(True), jnp.array(0.5))
    draw = jax.jit(jax.vmap(lambda key: one_to_one(key, given, ends, ends)))
    pairing = draw(jax.random.split(KEY, num_keys))
    index = np.asarray(pairing.source_index)
    assert (np.sort(index, axis=1) == np.arange(rows)).all()
    assert (pairing.marginal_error == 0).all()
    assert largest_z(index, law([0, 1, 2], [0, 1, 2])) < 4
    assert largest_z(index, np.full((rows, rows), 1 / rows)) > 6
    assert largest_z(index, plan / plan.sum(axis=0)) > 6  # the law of one pair, without regard to the others


def test_one_to_one_pairs_of_a_plan_that_is_no_plan():
    """All equal, forbidden throughout, no numbers: still a permutation."""
    ends, pair = jnp.zeros((4, 1)), jax.jit(one_to_one)
    for fill in (0.0, -np.inf, np.nan):
        given = Plan(jnp.full((4, 4), fill), jnp.zeros((4, 4)), jnp.array(False), jnp.array(1.0))
        pairing = pair(KEY, given, ends, ends)
        np.testing.assert_array_equal(np.sort(pairing.source_index), np.arange(4))
        assert not pairing.converged


@pytest.mark.parametrize("penalties", [(0.5, np.inf), (2.0, 0.7)], ids=["data", "both"])
def test_unbalanced_is_the_plan_of_its_formula(penalties):
    """Weights, cost and partners against a plan computed here; the law of a balanced plan fails."""
    target_penalty, source_penalty = penalties
    rows, num_keys = 5, 4000
    x0, x1 = two_ends(rows=rows, event=(2,))
    cost = brute_cost(x0, x1)
    coupling = unbalanced(target_penalty, source_penalty=source_penalty, epsilon=0.3, threshold=1e-6)
    pairing = jax.jit(jax.vmap(coupling, (0, None, None)))(jax.random.split(KEY, num_keys), x0, x1)
    scaled = cost / cost.mean()
    plan, balanced = (
        entropic_plan(scaled, 0.3, *strengths)
        for strengths in ((source_penalty, target_penalty), (np.inf, np.inf))
    )
    assert pairing.converged.all()
    assert (pairing.marginal_error < 1e-5).all()
    weight = rows * plan.sum(axis=0) / plan.sum()
    np.testing.assert_allclose(pairing.weight[0], weight, rtol=1e-4)
    assert np.abs(weight - 1).max() > 0.2
    np.testing.assert_allclose(pairing.cost[0], (plan * cost).sum() / plan.sum(), rtol=1e-4)
    index = np.asarray(pairing.source_index)
    assert largest_z(index, plan / plan.sum(axis=0)) < 4
    assert largest_z(index, balanced / balanced.sum(axis=0)) > 6
    # The mass is what the threshold is measured by.
    from gft_jax.couplings import entropic  # here, since ott takes seconds

    settings = {"relative": True, "threshold": 1e-6, "max_iterations": 2000}
    solved, mass = jax.jit(
        functools.partial(
            entropic.entropic_plan,
            penalty=None,
            epsilon=0.3,
            source_penalty=source_penalty,
            target_penalty=target_penalty,
            **settings,
        )
    )(jnp.asarray(cost.T, jnp.float32))
    np.testing.assert_allclose(jnp.exp(solved.log).T, plan, rtol=1e-3)
    np.testing.assert_allclose(mass, plan.sum(axis=0), rtol=1e-3)
    if source_penalty == np.inf:  # weighted, the partners are uniform: the source stays what it is
        np.testing.assert_allclose(plan.sum(axis=1), 1 / rows, rtol=1e-6)


def test_unbalanced_gives_a_planted_outlier_no_weight():
    x0, x1 = two_ends(rows=64, event=(2,))
    x1[10] = [40.0, -40.0]
    pairing = unbalanced()(KEY, x0, x1)
    assert pairing.converged
    assert pairing.weight[10] < 1e-3
    others = np.delete(pairing.weight, 10)
    assert others.sum() ** 2 / (len(others) * (others**2).sum()) > 0.95  # the others count nearly alike
    # Balanced, the same row has its full share, and makes up most of the cost.
    kept = unbalanced(np.inf)(KEY, x0, x1)
    np.testing.assert_allclose(kept.weight, 1, rtol=1e-3)
    assert kept.cost > 5 * pairing.cost
    plain = default()(KEY, x0, x1)
    np.testing.assert_array_equal(kept.source_index, plain.source_index)
    np.testing.assert_allclose(kept.cost, plain.cost, rtol=1e-4)


def test_unbalanced_checks_its_hyperparameters():
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"target_penalty must be positive, inf for .* got"):
            unbalanced(value)
        with pytest.raises(ValueError, match=r"source_penalty must be positive, inf for .* got"):
            unbalanced(source_penalty=value)
        with pytest.raises(ValueError, match=r"epsilon must be positive and finite, got"):
            unbalanced(epsilon=value)
        with pytest.raises(ValueError, match=r"threshold must be positive and finite, got"):
            unbalanced(threshold=value)
    with pytest.raises(ValueError, match=r"max_iterations must be >= 1, got 0"):
        unbalanced(max_iterations=0)
