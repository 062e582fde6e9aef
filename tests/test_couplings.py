import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from gft_jax.couplings import apply, exact, independent, sinkhorn
from gft_jax.couplings.base import flat_ends, squared_distances

KEY = jax.random.key(7)
COUPLINGS = {  # made when used: sinkhorn() imports ott
    "independent": independent,
    "exact": exact,
    "sinkhorn": functools.cache(sinkhorn),
}
every_coupling = pytest.mark.parametrize("name", COUPLINGS)


def ends(rows=12, event=(2, 3), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x0, x1 = rng.standard_normal((2, rows, *event))
    return jnp.asarray(x0, dtype), jnp.asarray(1 + 2 * x1, dtype)


def brute_cost(x0, x1):
    """Squared distances [x0, x1] in float64, entry by entry."""
    x0, x1 = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x0, x1))
    return ((x0[:, None] - x1[None]) ** 2).sum(-1)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@every_coupling
def test_contract(name):
    coupling = COUPLINGS[name]()
    x0, x1 = ends()
    pairing = coupling(KEY, x0, x1)
    assert_same(pairing, coupling(KEY, x0, x1))
    assert_same(pairing, jax.jit(coupling)(KEY, x0, x1))
    other = coupling(jax.random.key(8), x0, x1)
    assert (pairing.source_index == other.source_index).all() == (name == "exact")
    assert pairing.source_index.dtype == pairing.target_index.dtype == jnp.int32
    np.testing.assert_array_equal(pairing.target_index, np.arange(12))
    assert pairing.cost.dtype == pairing.marginal_error.dtype == jnp.float32
    assert pairing.weight is None
    assert pairing.converged
    if name != "sinkhorn":
        np.testing.assert_array_equal(np.sort(pairing.source_index), np.arange(12))
        assert pairing.marginal_error == 0
        pairs = brute_cost(x0, x1)[pairing.source_index, pairing.target_index]
        np.testing.assert_allclose(pairing.cost, pairs.mean(), rtol=1e-5)
    # The rank of the event does not matter, nor whether the rows are numpy's.
    for event in ((6,), (1, 2, 3)):
        reshaped = coupling(KEY, x0.reshape(12, *event), np.asarray(x1).reshape(12, *event))
        np.testing.assert_array_equal(reshaped.source_index, pairing.source_index)

    # The pairing is a constant for autodiff: here the gradient of sum_k x0[s(k)]^2 with s held fixed.
    def loss(x):
        index = coupling(KEY, x, x1).source_index
        return jnp.sum(x[index] ** 2) + coupling(KEY, x, x1).cost, index

    gradient, index = jax.grad(loss, has_aux=True)(x0)
    uses = np.bincount(index, minlength=12)
    np.testing.assert_allclose(gradient, 2 * uses[:, None, None] * x0, rtol=1e-6)


@every_coupling
def test_batched_by_vmap_equals_one_by_one(name):
    coupling = COUPLINGS[name]()
    keys = jax.random.split(KEY, 3)
    batches = [ends(seed=seed) for seed in range(3)]
    x0, x1 = (jnp.stack(x) for x in zip(*batches, strict=True))
    together = jax.jit(jax.vmap(coupling))(keys, x0, x1)
    for i, (a, b) in enumerate(batches):
        alone = coupling(keys[i], a, b)
        np.testing.assert_array_equal(together.source_index[i], alone.source_index)
        np.testing.assert_allclose(together.cost[i], alone.cost, rtol=1e-5)


@every_coupling
def test_double_precision_is_kept(name, x64):
    x0, x1 = ends(dtype=np.float64)
    with jax.numpy_rank_promotion("raise"):  # a user's strictest setting
        pairing = jax.eval_shape(COUPLINGS[name](), KEY, x0, x1)
    assert pairing.cost.dtype == pairing.marginal_error.dtype == jnp.float64
    assert pairing.source_index.dtype == pairing.target_index.dtype == jnp.int32
    if name == "exact":  # to more digits than single precision has
        pairing = exact()(KEY, x0, x1)
        pairs = brute_cost(x0, x1)[pairing.source_index, pairing.target_index]
        np.testing.assert_allclose(pairing.cost, pairs.mean(), rtol=1e-14)


@every_coupling
def test_whole_rows_move_with_their_conditions(name):
    x0, x1 = ends()
    label = np.arange(12)
    cond = {"label": label, "image": (x1, None), "key": jax.random.split(KEY, 12)}
    source_cond = (2 * x0, label)

    pairing = COUPLINGS[name]()(KEY, x0, x1, cond, source_cond)
    source_index = pairing.source_index
    y0, y1, moved, moved_source = jax.jit(apply)(pairing, x0, x1, cond, source_cond)
    assert (source_index != np.arange(12)).any()
    np.testing.assert_array_equal(y0, np.asarray(x0)[source_index])
    np.testing.assert_array_equal(y1, x1)
    np.testing.assert_array_equal(moved["label"], label)
    np.testing.assert_array_equal(moved["image"][0], y1)
    assert moved["image"][1] is None
    np.testing.assert_array_equal(jax.random.key_data(moved["key"]), jax.random.key_data(cond["key"]))
    np.testing.assert_array_equal(moved_source[0], 2 * y0)
    np.testing.assert_array_equal(moved_source[1], source_index)


def test_apply_also_moves_x1_where_a_coupling_chooses_it():
    x0, x1 = ends()
    chosen = jnp.array([3, 3, 0], jnp.int32)
    pairing = independent()(KEY, x0, x1)._replace(source_index=chosen[::-1], target_index=chosen)
    y0, y1, cond, source_cond = apply(pairing, x0, x1, jnp.arange(12), None)
    np.testing.assert_array_equal(y0, np.asarray(x0)[[0, 3, 3]])
    np.testing.assert_array_equal(y1, np.asarray(x1)[[3, 3, 0]])
    np.testing.assert_array_equal(cond, [3, 3, 0])
    assert source_cond is None


@every_coupling
def test_wrong_shapes_are_named(name):
    coupling = COUPLINGS[name]()
    for shape0, shape1 in (((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4, 1)), ((), ()), ((0, 2), (0, 2))):
        with pytest.raises(ValueError, match=r"same shape") as error:
            jax.eval_shape(coupling, KEY, jnp.zeros(shape0), jnp.zeros(shape1))
        assert f"x0 {shape0} and x1 {shape1}" in str(error.value)


def test_conditions_of_another_length_are_refused():
    x0, x1 = ends()
    pairing = independent()(KEY, x0, x1)
    with pytest.raises(
        ValueError, match=r"cond\['a'\].*each row of x1, got shape \(11,\) for x1 of shape \(12,"
    ):
        apply(pairing, x0, x1, {"a": jnp.zeros(11)})
    with pytest.raises(ValueError, match=r"source_cond must .*row of x0, got shape \(\)"):
        apply(pairing, x0, x1, None, 1.0)


def test_independent_breaks_an_alignment_uniformly():
    """Each source falls on each target with probability 1/rows: a z-score per cell, over many keys."""
    rows, num_keys = 5, 4000
    x = jnp.arange(float(rows))
    draw = jax.jit(jax.vmap(lambda key: independent()(key, x, x).source_index))
    index = np.asarray(draw(jax.random.split(KEY, num_keys)))

    def largest_z(index):
        counts = np.array([[np.sum(index[:, j] == i) for j in range(rows)] for i in range(rows)])
        return np.abs((counts - num_keys / rows) / np.sqrt(num_keys / rows * (1 - 1 / rows))).max()

    assert largest_z(index) < 4
    lazy = np.where(np.arange(num_keys)[:, None] % 10 == 0, np.arange(rows), index)  # one in ten left aligned
    assert largest_z(lazy) > 6


def test_exact_in_one_dimension_pairs_the_sorted():
    x0, x1 = ends(rows=50, event=())
    pairing = exact()(KEY, x0, x1)
    np.testing.assert_array_equal(np.sort(x0), np.asarray(x0)[pairing.source_index][np.argsort(x1)])


def test_exact_is_the_best_of_all_permutations():
    for seed in range(3):
        x0, x1 = ends(rows=6, event=(2,), seed=seed)
        cost = brute_cost(x0, x1)
        best = min(cost[list(s), range(6)].mean() for s in itertools.permutations(range(6)))
        np.testing.assert_allclose(exact()(KEY, x0, x1).cost, best, rtol=1e-5)


def test_exact_approaches_the_monge_map_between_gaussians():
    """N(0, 1) to N(m, s^2): W2^2 = m^2 + (1 - s)^2, and the independent coupling costs m^2 + 1 + s^2."""
    m, s, rows, repeats = 2.0, 0.5, 128, 50
    rng = np.random.default_rng(0)
    x0 = rng.standard_normal((repeats, rows), np.float32)
    x1 = m + s * rng.standard_normal((repeats, rows), np.float32)
    keys = jax.random.split(KEY, repeats)

    def z_score(coupling, *expected):
        costs = np.array([coupling(*ends).cost for ends in zip(keys, x0, x1, strict=True)], np.float64)
        return (costs.mean() - np.array(expected)) / (costs.std(ddof=1) / np.sqrt(repeats))

    # The squared difference of the two sample means makes the optimum of a batch too large by (1 + s^2) / rows.
    optimal, product = m**2 + (1 - s) ** 2 + (1 + s**2) / rows, m**2 + 1 + s**2
    right, wrong = z_score(exact(), optimal, product)
    assert abs(right) < 3
    assert wrong < -10
    right, wrong = z_score(independent(), product, optimal)
    assert abs(right) < 3
    assert wrong > 10


def test_exact_does_not_mind_a_large_offset():
    """Rows far from the origin: centred first, |a|^2 + |b|^2 - 2 a.b still has its digits."""
    x0, x1 = (
        np.round(np.asarray(x) * 64) / 64 for x in ends(rows=12, event=(6,))
    )  # so that the shift is exact
    far0, far1 = x0 + 4096, x1 + 4096
    cost = brute_cost(x0, x1)
    np.testing.assert_allclose(
        squared_distances(*flat_ends(far0, far1)), cost, rtol=1e-4, atol=1e-4 * cost.mean()
    )
    np.testing.assert_array_equal(exact()(KEY, far0, far1).source_index, exact()(KEY, x0, x1).source_index)
    naive = np.sum(far0**2, 1)[:, None] + np.sum(far1**2, 1)[None] - 2 * far0 @ far1.T
    assert naive.dtype == np.float32
    assert np.abs(naive - cost).max() > 1
    assert "HIGHEST" in str(jax.make_jaxpr(squared_distances)(x0, x1))


def test_integers_and_half_precision_are_compared_in_single():
    x0, x1 = np.array([[200], [1]], np.uint8), np.array([[0], [255]], np.uint8)
    pairing = exact()(KEY, x0, x1)
    np.testing.assert_array_equal(pairing.source_index, [1, 0])
    assert pairing.cost == (1**2 + 55**2) / 2
    half = jnp.array([[1.0], [256.0]], jnp.bfloat16)
    assert exact()(KEY, half, half + 2).cost.dtype == jnp.float32


def test_ends_that_are_not_finite():
    x0, x1 = ends()
    bad = x0.at[5, 0, 1].set(jnp.nan).at[7, 1, 1].set(jnp.inf)
    with pytest.raises(
        ValueError, match=r"not finite: 2 of 12 rows of x0 are not finite \(first: \[5, 7\]\)"
    ):
        exact()(KEY, bad, x1)
    with pytest.raises(ValueError, match=r"overflow float32"):
        exact()(KEY, x0 * 1e20, x1)
    inside = jax.jit(exact())(KEY, bad, x1)
    assert not inside.converged
    np.testing.assert_array_equal(inside.source_index, np.arange(12))
    assert not jax.jit(exact())(KEY, x0 * 1e20, x1).converged
    assert not independent()(KEY, bad, x1).converged
    assert not COUPLINGS["sinkhorn"]()(
        KEY, x0 * 1e18, x1
    ).converged  # finite, but the mean distance overflows
    entropic = COUPLINGS["sinkhorn"]()(KEY, bad, x1)
    assert not entropic.converged
    assert ((entropic.source_index >= 0) & (entropic.source_index < 12)).all()


def entropic_plan(cost, epsilon, num_iterations=20_000):
    """The plan between uniform marginals, in float64 by the multiplicative iteration."""
    kernel = np.exp(-cost / epsilon)
    u = np.ones(len(cost))
    for _ in range(num_iterations):
        v = 1 / len(cost) / (kernel.T @ u)
        u = 1 / len(cost) / (kernel @ v)
    return u[:, None] * kernel * v[None, :]


def test_sinkhorn_draws_partners_from_the_columns_of_the_plan():
    """The law of each partner against a plan computed here; partners drawn from its rows, or uniformly, fail."""
    rows, num_keys = 5, 4000
    x0, x1 = ends(rows=rows, event=(2,))
    cost = brute_cost(x0, x1)
    keys = jax.random.split(KEY, num_keys)
    pairing = jax.jit(jax.vmap(sinkhorn(0.3, threshold=1e-6), (0, None, None)))(keys, x0, x1)
    plan = entropic_plan(cost, 0.3 * cost.mean())
    np.testing.assert_allclose(pairing.cost, (plan * cost).sum(), rtol=1e-4)
    assert pairing.converged.all()
    assert (pairing.marginal_error < 3e-6).all()
    index = np.asarray(pairing.source_index)
    counts = np.array([[np.sum(index[:, j] == i) for j in range(rows)] for i in range(rows)])

    def largest_z(law):
        return np.abs((counts - num_keys * law) / np.sqrt(num_keys * law * (1 - law) + 1e-9)).max()

    assert largest_z(plan * rows) < 4
    assert largest_z(plan.T * rows) > 6
    assert largest_z(np.full((rows, rows), 1 / rows)) > 6
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


def test_sinkhorn_of_small_epsilon_approaches_the_exact_assignment():
    x0, x1 = ends()
    optimal = exact()(KEY, x0, x1)
    entropic = sinkhorn(1e-3, max_iterations=20_000)(KEY, x0, x1)
    assert entropic.converged
    np.testing.assert_array_equal(entropic.source_index, optimal.source_index)
    np.testing.assert_allclose(entropic.cost, optimal.cost, rtol=2e-3)
    blurred = COUPLINGS["sinkhorn"]()(KEY, x0, x1)
    assert blurred.cost > 1.02 * optimal.cost


def test_sinkhorn_tells_when_it_has_not_converged():
    x0, x1 = ends()
    pairing = sinkhorn(1e-3, max_iterations=1)(KEY, x0, x1)
    assert not pairing.converged
    assert pairing.marginal_error > 1e-2


def test_sinkhorn_of_coinciding_points():
    pairing = COUPLINGS["sinkhorn"]()(KEY, jnp.ones((12, 2, 3)), jnp.ones((12, 2, 3)))
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
