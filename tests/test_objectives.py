"""The objectives against flows between Gaussians, where every drift is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import gft_jax as gft
from gft_jax.gaussian import Gaussian, blended_velocity, marginal_velocity, monge_map
from gft_jax.objectives.path_rows import squared_norm
from gft_jax.pairing import row_keys

PATH = gft.paths.linear()
BASE_PARAMS = {"matrix": np.array([[0.3, -1.0], [0.2, 0.5]]), "offset": np.array([1.0, 2.0])}
PARAMS = {"matrix": BASE_PARAMS["matrix"] + 0.3, "offset": BASE_PARAMS["offset"] + 0.3}

gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
"""``(objective, params, base_params, batch, temperature)`` -> (gradient, stats)."""


def laws():
    """Source, pretrained and target law, in the precision of the test."""
    source = Gaussian(jnp.zeros(2), jnp.eye(2))
    base = Gaussian(jnp.array([0.5, -0.5]), jnp.array([[1.2, 0.3], [0.3, 0.8]]))
    target = Gaussian(jnp.array([3.0, 1.0]), jnp.array([[0.4, -0.1], [-0.1, 0.6]]))
    return source, base, target


def batch_of(num_rows, *, cross=None, seed=0):
    """Rows of a Gaussian coupling of noise and target: independent, or the one of a map x1 = A x0 + b."""
    source, _, target = laws()
    key0, key1 = jax.random.split(jax.random.key(seed))
    x0 = gft.gaussian.sample(key0, source, num_rows)
    x1 = gft.gaussian.sample(key1, target, num_rows) if cross is None else x0 @ cross.T + target.mean
    return gft.Batch(x0, x1, row_keys(seed + 1, 0, num_rows))


def at_time(t):
    return lambda key: jnp.full((), t)


def affine(params, t, x, cond=None):
    return x @ params["matrix"].T + params["offset"]


def affine_params_of(velocity, t):
    """Parameters of ``affine`` that equal a velocity which is affine in x at one time."""

    def at(x):
        return velocity(jnp.full((1,), t), x[None])[0]

    return {"matrix": jax.jacobian(at)(jnp.zeros(2)), "offset": at(jnp.zeros(2))}


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def row_gradients(objective, params, base_params, batch, temperature):
    """Gradient of every row's loss, [rows, parameters]."""

    def one(row):
        single = jax.tree.map(lambda leaf: leaf[None], row)
        return flat(gradient(objective, params, base_params, single, temperature)[0])

    return jax.jit(jax.vmap(one))(batch)


def z_scores(rows):
    """Means in standard errors; rounding, 1e-6, counts as one where nothing is random."""
    rows = np.asarray(rows)
    return np.abs(rows.mean(0)) / (rows.std(0, ddof=1) / np.sqrt(len(rows)) + 1e-6)


@pytest.mark.parametrize(("time", "base_every"), [(0.25, 1), (0.8, 4)])
def test_minimiser_is_the_blended_drift(time, base_every):
    """The objective is quadratic in the parameters of an affine drift, so one Newton step finds the minimiser."""
    temperature, num_rows = 1.5, 40_000
    source, base, target = laws()
    base_velocity = marginal_velocity(PATH, source, base)
    target_velocity = marginal_velocity(PATH, source, target)
    base_params = affine_params_of(base_velocity, time)
    objective = gft.objectives.gradual(affine, PATH, time_sampler=at_time(time), base_every=base_every)
    batch = batch_of(num_rows)
    start = jax.tree.map(jnp.zeros_like, base_params)

    @jax.jit
    def minimiser(batch):
        vector, unravel = jax.flatten_util.ravel_pytree(start)

        def loss(vector):
            return gft.mean_loss(objective, unravel(vector), base_params, batch, temperature)[0]

        return vector - jnp.linalg.solve(jax.hessian(loss)(vector), jax.grad(loss)(vector))

    chunks = jax.tree.map(lambda leaf: leaf.reshape(40, num_rows // 40, *leaf.shape[1:]), batch)
    estimates = np.asarray(jax.lax.map(minimiser, chunks))

    def expected(weight):
        return flat(affine_params_of(blended_velocity(base_velocity, target_velocity, weight), time))

    weight = 1 / (1 + temperature)
    assert z_scores(estimates - expected(weight)).max() < 4.0
    assert z_scores(estimates - expected(weight + 0.1)).max() > 6.0  # power


def test_zero_temperature_has_the_gradients_of_flow_matching_bit_for_bit():
    drift = gft.drifts.from_linen(gft.networks.ResidualMLP(hidden=16, depth=1))
    params = perturbed_network(0)
    batch = batch_of(64)
    gradual, flow_matching = gft.objectives.gradual(drift), gft.objectives.flow_matching(drift)
    ours, _ = gradient(gradual, params, perturbed_network(1), batch, 0.0)
    theirs, _ = gradient(flow_matching, params, None, batch, 0.0)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))
    warm, _ = gradient(gradual, params, perturbed_network(1), batch, 0.1)
    assert not np.array_equal(flat(ours), flat(warm))


def test_infinite_temperature_has_no_gradient_at_the_base():
    drift = gft.drifts.from_linen(gft.networks.ResidualMLP(hidden=16, depth=1))
    params, batch = perturbed_network(0), batch_of(64)
    objective = gft.objectives.gradual(drift)
    frozen, cool = (
        np.abs(flat(gradient(objective, params, params, batch, beta)[0])).max() for beta in (jnp.inf, 10.0)
    )
    assert frozen < 1e-6 * cool  # student and base are two programs, and round differently


def perturbed_network(seed):
    """A small network whose last layer is not zero."""
    module = gft.networks.ResidualMLP(hidden=16, depth=1)
    params = module.init(jax.random.key(0), jnp.zeros(1), jnp.zeros((1, 2)))["params"]
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(vector + 0.3 * jax.random.normal(jax.random.key(seed + 10), vector.shape))


def test_blended_regression_is_the_sum_of_two_weighted_losses(x64):
    """|v - u|^2 + beta |v - v_base|^2 = (1 + beta) |v - y|^2 + constant, so the gradients agree."""
    temperature = 0.7
    batch = batch_of(32)
    objective = gft.objectives.gradual(affine, normalized=False)
    rows = objective.prepare(PARAMS, BASE_PARAMS, (), batch, jnp.asarray(temperature))

    @jax.grad
    def two_losses(params):
        velocity = affine(params, rows.path.t, rows.path.x)
        penalty = squared_norm(velocity - affine(BASE_PARAMS, rows.path.t, rows.path.x))
        return jnp.mean(squared_norm(velocity - rows.path.velocity) + temperature * penalty)

    ours, _ = gradient(objective, PARAMS, BASE_PARAMS, batch, temperature)
    np.testing.assert_allclose(flat(ours), flat(two_losses(PARAMS)), rtol=1e-12)
    smaller, _ = gradient(gft.objectives.gradual(affine), PARAMS, BASE_PARAMS, batch, temperature)
    np.testing.assert_allclose((1 + temperature) * flat(smaller), flat(ours), rtol=1e-12)


def test_base_on_a_fraction_of_the_rows_is_unbiased(x64):
    """Averaged over the k choices of rows that may carry the base, the gradient is the one of all rows."""
    k, temperature = 4, 2.0
    batch = batch_of(32)
    whole, stats = gradient(gft.objectives.gradual(affine), PARAMS, BASE_PARAMS, batch, temperature)
    objective = gft.objectives.gradual(affine, base_every=k)
    rolled = [jax.tree.map(lambda leaf, shift=shift: jnp.roll(leaf, shift, 0), batch) for shift in range(k)]
    parts = [gradient(objective, PARAMS, BASE_PARAMS, rows, temperature) for rows in rolled]
    np.testing.assert_allclose(np.mean([flat(part) for part, _ in parts], 0), flat(whole), rtol=1e-12)
    assert np.abs(flat(parts[0][0]) - flat(whole)).max() > 1e-3
    for name in ("displacement_squared", "displacement_along_target"):
        np.testing.assert_allclose(np.mean([part[name] for _, part in parts]), stats[name], rtol=1e-12)


@pytest.mark.parametrize("coupling", ["independent", "monge"])
def test_conditional_gradient_is_the_marginal_one_for_any_coupling(coupling):
    """The conditional loss differs from the marginal one by a constant; per row, by a term of mean zero."""
    temperature = 0.5
    source, _, target = laws()
    matrix, _ = monge_map(source, target)
    crosses = {"independent": None, "monge": matrix}
    batch = batch_of(20_000, cross=crosses[coupling])
    objective = gft.objectives.gradual(affine, PATH)
    conditional = row_gradients(objective, PARAMS, BASE_PARAMS, batch, temperature)
    rows = objective.prepare(PARAMS, BASE_PARAMS, (), batch, jnp.asarray(temperature)).path

    def marginal(cross):
        velocity = marginal_velocity(PATH, source, target, cross)(rows.t, rows.x)
        blend = (velocity + temperature * affine(BASE_PARAMS, rows.t, rows.x)) / (1 + temperature)

        def one(x, y):
            return flat(jax.grad(lambda p: jnp.sum((affine(p, None, x[None])[0] - y) ** 2))(PARAMS))

        return jax.jit(jax.vmap(one))(rows.x, blend)

    right = crosses[coupling]
    wrong = matrix if coupling == "independent" else None
    assert z_scores(conditional - marginal(right)).max() < 4.0
    assert z_scores(conditional - marginal(wrong)).max() > 6.0  # power


@pytest.mark.parametrize(("coupling", "base_every"), [("independent", 1), ("monge", 4)])
def test_effective_target_weight_recovers_the_weight_at_the_optimum(coupling, base_every):
    source, base, target = laws()
    cross = None if coupling == "independent" else monge_map(source, target).matrix
    base_velocity = marginal_velocity(PATH, source, base)
    target_velocity = marginal_velocity(PATH, source, target, cross)

    def drift(weight, t, x, cond=None):
        return blended_velocity(base_velocity, target_velocity, weight)(t, x)

    objective = gft.objectives.gradual(drift, PATH, base_every=base_every, base_drift=drift)
    batch = batch_of(64_000, cross=cross)
    groups = jax.tree.map(lambda leaf: leaf.reshape(32, 2000, *leaf.shape[1:]), batch)

    @jax.jit
    def estimates(weight):
        stats = jax.lax.map(lambda group: gft.mean_loss(objective, weight, 0.0, group, 1.0)[1], groups)
        return gft.cooling.effective_target_weight(
            stats["displacement_squared"], stats["displacement_along_target"]
        )

    for weight in (0.2, 0.6):
        found = np.asarray(estimates(weight))
        assert z_scores(found[:, None] - weight).max() < 4.0
        assert z_scores(found[:, None] - (weight + 0.05)).max() > 8.0  # power
        assert found.std() < 0.05


def test_moments_are_zero_or_absent_where_the_effective_weight_is_undefined():
    batch, objective = batch_of(16), gft.objectives.gradual(affine)
    _, stats = gradient(objective, PARAMS, BASE_PARAMS, batch, 0.0)
    assert float(stats["displacement_squared"]) == float(stats["displacement_along_target"]) == 0.0
    assert float(gradient(objective, PARAMS, BASE_PARAMS, batch, 1.0)[1]["displacement_squared"]) > 0.1
    on_base = gft.objectives.gradual(affine, base_path=gft.objectives.rolled_out(1))
    assert set(gradient(on_base, PARAMS, BASE_PARAMS, batch, 1.0)[1]) == {"flow_matching_loss"}


@pytest.mark.parametrize("base_every", [1, 4])
def test_weights_of_rows_and_time_are_in_loss_and_moments(base_every, x64):
    """All terms are means under the rows' weights, with the factor k(t)."""
    weight = jnp.linspace(0.2, 2.0, 16)
    batch = batch_of(16)._replace(weight=weight)
    objective = gft.objectives.gradual(affine, weighting=lambda t: 3.0 * t, base_every=base_every)
    rows = objective.prepare(PARAMS, BASE_PARAMS, (), batch, jnp.asarray(1.5)).path
    chosen = jnp.arange(16) % base_every == 0

    def terms(params):
        velocity, base = (affine(some, None, rows.x) for some in (params, BASE_PARAMS))
        r, d = velocity - base, rows.velocity - base

        def mean(values, base_rows):
            spread = base_every * chosen if base_rows else 1.0
            return jnp.sum(weight * spread * 3.0 * rows.t * values) / jnp.sum(weight)

        loss = 0.4 * mean(squared_norm(velocity - rows.velocity), False) + 0.6 * mean(squared_norm(r), True)
        return loss, {
            "displacement_squared": mean(squared_norm(r), True),
            "displacement_along_target": mean(jnp.sum(r * d, -1), True),
        }

    expected, moments = jax.grad(terms, has_aux=True)(PARAMS)
    ours, stats = gradient(objective, PARAMS, BASE_PARAMS, batch, 1.5)
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-11)
    for name, moment in moments.items():
        np.testing.assert_allclose(stats[name], moment, rtol=1e-11)


@pytest.mark.parametrize("base_path", [None, gft.objectives.rolled_out(2)])
def test_student_and_base_see_the_condition_of_their_row(base_path, x64):
    """A condition that shifts both drifts alike shifts u - v by as much: checked against rows one by one."""

    def drift(params, t, x, cond=None):
        return affine(params, t, x) + cond["shift"]

    batch = batch_of(8)._replace(cond={"shift": jnp.arange(16.0).reshape(8, 2)})
    objective = gft.objectives.gradual(drift, base_every=2, base_path=base_path)
    rows = objective.prepare(PARAMS, BASE_PARAMS, (), batch, jnp.asarray(1.0))
    x = rows.path.x[::2] if base_path is None else rows.base_x
    shift = batch.cond["shift"]
    np.testing.assert_allclose(rows.base_velocity, affine(BASE_PARAMS, None, x) + shift[::2], rtol=1e-12)
    data = squared_norm(affine(PARAMS, None, rows.path.x) + shift - rows.path.velocity)
    penalty = squared_norm(affine(PARAMS, None, x) + shift[::2] - rows.base_velocity)
    loss, _ = gft.mean_loss(objective, PARAMS, BASE_PARAMS, batch, 1.0)
    np.testing.assert_allclose(loss, 0.5 * data.mean() + 0.5 * penalty.mean(), rtol=1e-12)


def test_the_base_is_not_evaluated_at_zero_temperature():
    calls = []

    def counting(params, t, x, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return affine(params, t, x)

    objective, batch = gft.objectives.gradual(affine, base_drift=counting), batch_of(8)
    for temperature, expected in ((0.0, 0), (1.0, 1)):
        calls.clear()
        jax.block_until_ready(gradient(objective, PARAMS, BASE_PARAMS, batch, temperature))
        jax.effects_barrier()
        assert len(calls) == expected


def test_prepared_rows_are_held_fixed_also_in_what_depends_on_the_base(x64):
    """With student and base the same variables, the gradient is still that of the student alone."""
    objective, batch = gft.objectives.gradual(affine), batch_of(16)
    both = jax.grad(lambda params: gft.mean_loss(objective, params, params, batch, 1.0)[0])(PARAMS)
    student, _ = gradient(objective, PARAMS, PARAMS, batch, 1.0)
    np.testing.assert_allclose(flat(both), flat(student), rtol=1e-12)


def test_half_precision_data_keep_exact_times():
    """Times, weights and sums are in float32: bfloat16 has 679 times, and adds 257 rows up to 256."""
    batch = batch_of(1024)
    half = batch._replace(x0=batch.x0.astype(jnp.bfloat16), x1=batch.x1.astype(jnp.bfloat16))
    for path in (gft.paths.variance_preserving(), gft.paths.brownian_bridge(0.5)):
        sampler = gft.objectives.time_sampling.uniform(1e-3, 1 - 1e-3)
        objective = gft.objectives.flow_matching(affine, path, time_sampler=sampler)
        rows = objective.prepare(PARAMS, None, (), half, jnp.asarray(0.0))
        assert len(np.unique(rows.t)) > 1000
        assert np.isfinite(rows.velocity).all()
        loss, exact = (gft.mean_loss(objective, PARAMS, None, some)[0] for some in (half, batch))
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, exact, rtol=0.02)


def test_penalty_on_the_base_path(x64):
    """The rollout has the marginal law of the base flow, and the gradient is that of the two separate means."""
    source, base, _ = laws()
    base_velocity = marginal_velocity(PATH, source, base)

    def base_drift(params, t, x, cond=None):
        return base_velocity(t, x)

    x0 = batch_of(10_000).x0
    sample = jax.jit(gft.objectives.rolled_out(32), static_argnums=0)
    x = sample(base_drift, None, jnp.full((10_000,), 0.6), x0, None)
    law, earlier = (gft.gaussian.marginal_law(PATH, source, base, t) for t in (0.6, 0.5))
    assert z_scores(x - law.mean).max() < 4.0
    assert z_scores(x - earlier.mean).max() > 6.0  # power
    np.testing.assert_allclose(np.cov(x.T), law.cov, atol=0.03)

    temperature, k = 0.8, 2
    rollout = gft.objectives.rolled_out(3)
    objective = gft.objectives.gradual(affine, PATH, base_drift=base_drift, base_path=rollout, base_every=k)
    batch = batch_of(24)
    rows = objective.prepare(PARAMS, PARAMS, (), batch, jnp.asarray(temperature)).path
    x_base = rollout(base_drift, None, rows.t[::k], batch.x0[::k], None)

    @jax.grad
    def two_means(params):
        weight = 1 / (1 + temperature)
        data = squared_norm(affine(params, rows.t, rows.x) - rows.velocity)
        penalty = squared_norm(affine(params, None, x_base) - base_velocity(rows.t[::k], x_base))
        return weight * jnp.mean(data) + (1 - weight) * jnp.mean(penalty)

    ours, _ = gradient(objective, PARAMS, PARAMS, batch, temperature)
    np.testing.assert_allclose(flat(ours), flat(two_means(PARAMS)), rtol=1e-11)


def test_weights_of_rows_and_of_time(x64):
    """A row of weight 2 counts as two rows; k(t) multiplies the squared error."""
    batch = batch_of(6)
    objective = gft.objectives.flow_matching(affine)
    weighted = batch._replace(weight=jnp.array([2.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    repeated = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 1, 2, 3, 4])], batch)
    ours, _ = gradient(objective, PARAMS, None, weighted, 0.0)
    theirs, _ = gradient(objective, PARAMS, None, repeated, 0.0)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-12)

    rows = objective.prepare(PARAMS, None, (), batch, jnp.asarray(0.0))
    by_time = gft.objectives.flow_matching(affine, weighting=lambda t: 3.0 * t)
    error = squared_norm(affine(PARAMS, rows.t, rows.x) - rows.velocity)
    loss, _ = gft.mean_loss(by_time, PARAMS, None, batch)
    np.testing.assert_allclose(loss, jnp.mean(3.0 * rows.t * error), rtol=1e-12)


def test_girsanov_weight_in_closed_form(x64):
    t = jnp.linspace(0.05, 0.9, 12)
    memoryless = gft.objectives.weighting.girsanov(PATH, gft.diffusions.memoryless(PATH), max_weight=1e9)
    np.testing.assert_allclose(memoryless(t), t / (1 - t), rtol=1e-10)
    g = 0.7
    constant = gft.objectives.weighting.girsanov(PATH, gft.diffusions.constant(g), max_weight=1e9)
    np.testing.assert_allclose(constant(t), (1 + g**2 * t / (2 * (1 - t))) ** 2 / (2 * g**2), rtol=1e-10)
    ends = jnp.array([0.0, 1.0])
    capped = gft.objectives.weighting.girsanov(PATH, gft.diffusions.memoryless(PATH), max_weight=50.0)
    np.testing.assert_allclose(capped(ends), [0.0, 50.0])
    np.testing.assert_allclose(constant(ends[:1]), 1 / (2 * g**2), rtol=1e-12)


def test_time_samplers_have_their_laws():
    keys = jax.random.split(jax.random.key(0), 4000)
    sample = gft.objectives.time_sampling.draw_times
    uniform = sample(gft.objectives.time_sampling.uniform(0.2, 0.7), keys, jnp.dtype(jnp.float32))
    logits = jax.scipy.special.logit(
        sample(gft.objectives.time_sampling.logit_normal(0.5, 0.8), keys, jnp.dtype(jnp.float32))
    )
    assert kstest(np.asarray(uniform), "uniform", (0.2, 0.5)).pvalue > 1e-3
    assert kstest(np.asarray(uniform), "uniform", (0.2, 0.55)).pvalue < 1e-6  # power
    assert kstest(np.asarray(logits), "norm", (0.5, 0.8)).pvalue > 1e-3
    assert kstest(np.asarray(logits), "norm", (0.6, 0.8)).pvalue < 1e-6  # power


def test_a_row_does_not_depend_on_its_neighbours():
    """Randomness comes from the row's key, so a batch in another order gives the same rows in that order."""
    objective = gft.objectives.gradual(affine)
    batch = batch_of(8)
    order = jnp.array([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    one = objective.prepare(PARAMS, PARAMS, (), batch, jnp.asarray(1.0)).path
    other = objective.prepare(PARAMS, PARAMS, (), shuffled, jnp.asarray(1.0)).path
    np.testing.assert_array_equal(one.x[order], other.x)
    assert len(np.unique(one.t)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b._replace(x1=None), "x1=None"),
        (lambda b: b._replace(x1=b.x1[:, :1]), r"\(6, 2\).*\(6, 1\)"),
        (lambda b: jax.tree.map(lambda leaf: leaf[:5], b), "base_every=2.*5 rows"),
        (lambda b: b._replace(weight=jnp.ones((6, 1))), r"weight.*\(6,\).*\(6, 1\)"),
    ],
)
def test_wrong_batches_are_refused(change, message):
    objective = gft.objectives.gradual(affine, base_every=2)
    with pytest.raises(ValueError, match=message):
        gft.mean_loss(objective, PARAMS, PARAMS, change(batch_of(6)), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gft.objectives.gradual(affine, base_every=0), "base_every.*0"),
        (lambda: gft.objectives.rolled_out(0), "num_steps.*0"),
        (lambda: gft.objectives.time_sampling.uniform(0.5, 0.2), "start=0.5, end=0.2"),
        (lambda: gft.objectives.time_sampling.logit_normal(std=0.0), "std.*0"),
        (
            lambda: gft.objectives.weighting.girsanov(PATH, gft.diffusions.constant(1.0), max_weight=0.0),
            "max_weight",
        ),
        (
            lambda: gft.objectives.weighting.girsanov(
                gft.paths.brownian_bridge(1.0), gft.diffusions.constant(1.0), max_weight=1.0
            ),
            "bridge",
        ),
    ],
)
def test_wrong_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_method_that_needs_a_base_says_so():
    objective = gft.objectives.gradual(affine)
    with pytest.raises(ValueError, match="base_params is None"):
        gft.mean_loss(objective, PARAMS, None, batch_of(4), 1.0)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match=r"temperature must be >= 0, got -0\.5"):
        gft.mean_loss(gft.objectives.gradual(affine), PARAMS, PARAMS, batch_of(4), -0.5)


def test_a_weighting_of_another_shape_is_refused():
    objective = gft.objectives.flow_matching(affine, weighting=lambda t: t[:, None])
    with pytest.raises(ValueError, match=r"weighting.*\(4,\).*\(4, 1\)"):
        gft.mean_loss(objective, PARAMS, None, batch_of(4))


def test_a_drift_of_another_shape_is_named_with_both_shapes():
    objective = gft.objectives.flow_matching(lambda params, t, x, cond=None: x[:, :1])
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 2\)"):
        gft.mean_loss(objective, {}, None, batch_of(4))
