"""Gradual fine-tuning against flows between Gaussians, where every drift is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import (
    BASE_PARAMS,
    PARAMS,
    PATH,
    affine,
    affine_params_of,
    at_time,
    batch_of,
    flat,
    gradient,
    laws,
    mean_loss,
    prepare,
    z_scores,
)

import gft_jax as gft
from gft_jax.gaussian import blended_velocity, marginal_velocity, monge_map
from gft_jax.objectives.path_rows import squared_norm


@jax.jit
def perturbed_network(seed):
    """A small network whose last layer is not zero."""
    module = gft.networks.ResidualMLP(hidden=16, depth=1)
    params = module.init(jax.random.key(0), jnp.zeros(1), jnp.zeros((1, 2)))["params"]
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(vector + 0.3 * jax.random.normal(jax.random.key(seed), vector.shape))


def in_groups(batch, num_groups):
    """The rows of a batch as so many batches, along a new leading axis."""

    def split(leaf):
        return leaf.reshape(num_groups, -1, *leaf.shape[1:])

    return jax.jit(lambda batch: jax.tree.map(split, batch))(batch)


def row_gradients(objective, params, base_params, batch, temperature):
    """Gradient of every row's loss, [rows, parameters]."""

    def one(row):
        single = jax.tree.map(lambda leaf: leaf[None], row)
        return flat(gradient(objective, params, base_params, single, temperature)[0])

    return jax.jit(jax.vmap(one))(batch)


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

    @jax.jit
    def minimiser(batch):
        vector, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, base_params))

        def loss(vector):
            return gft.mean_loss(objective, unravel(vector), base_params, batch, temperature)[0]

        return vector - jnp.linalg.solve(jax.hessian(loss)(vector), jax.grad(loss)(vector))

    estimates = np.asarray(jax.lax.map(minimiser, in_groups(batch, 40)))

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


def test_blended_regression_is_the_sum_of_two_weighted_losses(x64):
    """|v - u|^2 + beta |v - v_base|^2 = (1 + beta) |v - y|^2 + constant, so the gradients agree."""
    temperature = 0.7
    batch = batch_of(32)
    objective = gft.objectives.gradual(affine, normalized=False)
    rows = prepare(objective, PARAMS, BASE_PARAMS, batch, temperature)

    @jax.jit
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
    roll = jax.jit(lambda batch, shift: jax.tree.map(lambda leaf: jnp.roll(leaf, shift, 0), batch))
    rolled = [roll(batch, shift) for shift in range(k)]
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
    matrix, _ = jax.jit(monge_map)(source, target)
    crosses = {"independent": None, "monge": matrix}
    batch = batch_of(20_000, cross=crosses[coupling])
    objective = gft.objectives.gradual(affine, PATH)
    conditional = row_gradients(objective, PARAMS, BASE_PARAMS, batch, temperature)
    rows = prepare(objective, PARAMS, BASE_PARAMS, batch, temperature).path

    @jax.jit
    def marginal(cross):
        velocity = marginal_velocity(PATH, source, target, cross)(rows.t, rows.x)
        blend = (velocity + temperature * affine(BASE_PARAMS, rows.t, rows.x)) / (1 + temperature)

        def one(x, y):
            return flat(jax.grad(lambda p: jnp.sum((affine(p, None, x[None])[0] - y) ** 2))(PARAMS))

        return jax.vmap(one)(rows.x, blend)

    right = crosses[coupling]
    wrong = matrix if coupling == "independent" else None
    assert z_scores(conditional - marginal(right)).max() < 4.0
    assert z_scores(conditional - marginal(wrong)).max() > 6.0  # power


@pytest.mark.parametrize(("coupling", "base_every"), [("independent", 1), ("monge", 4)])
def test_effective_target_weight_recovers_the_weight_at_the_optimum(coupling, base_every):
    source, base, target = laws()
    cross = None if coupling == "independent" else jax.jit(monge_map)(source, target).matrix
    base_velocity = marginal_velocity(PATH, source, base)
    target_velocity = marginal_velocity(PATH, source, target, cross)

    def drift(weight, t, x, cond=None):
        return blended_velocity(base_velocity, target_velocity, weight)(t, x)

    objective = gft.objectives.gradual(drift, PATH, base_every=base_every, base_drift=drift)
    batch = batch_of(64_000, cross=cross)
    groups = in_groups(batch, 32)

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
    weight = np.linspace(0.2, 2.0, 16)
    batch = batch_of(16)._replace(weight=jnp.asarray(weight))
    objective = gft.objectives.gradual(affine, weighting=lambda t: 3.0 * t, base_every=base_every)
    rows = prepare(objective, PARAMS, BASE_PARAMS, batch, 1.5).path
    chosen = np.arange(16) % base_every == 0

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

    expected, moments = jax.jit(jax.grad(terms, has_aux=True))(PARAMS)
    ours, stats = gradient(objective, PARAMS, BASE_PARAMS, batch, 1.5)
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-11)
    for name, moment in moments.items():
        np.testing.assert_allclose(stats[name], moment, rtol=1e-11)


@pytest.mark.parametrize("base_path", [None, gft.objectives.rolled_out(2)])
def test_student_and_base_see_the_condition_of_their_row(base_path, x64):
    """A condition that shifts both drifts alike shifts u - v by as much: checked against rows one by one."""

    def drift(params, t, x, cond=None):
        return affine(params, t, x) + cond["shift"]

    shift = np.arange(16.0).reshape(8, 2)
    batch = batch_of(8)._replace(cond={"shift": jnp.asarray(shift)})
    objective = gft.objectives.gradual(drift, base_every=2, base_path=base_path)
    rows = jax.device_get(prepare(objective, PARAMS, BASE_PARAMS, batch, 1.0))
    x = rows.path.x[::2] if base_path is None else rows.base_x
    np.testing.assert_allclose(rows.base_velocity, affine(BASE_PARAMS, None, x) + shift[::2], rtol=1e-12)
    data = np.sum((affine(PARAMS, None, rows.path.x) + shift - rows.path.velocity) ** 2, -1)
    penalty = np.sum((affine(PARAMS, None, x) + shift[::2] - rows.base_velocity) ** 2, -1)
    loss, _ = mean_loss(objective, PARAMS, BASE_PARAMS, batch, 1.0)
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
    both = jax.jit(jax.grad(lambda params: gft.mean_loss(objective, params, params, batch, 1.0)[0]))(PARAMS)
    student, _ = gradient(objective, PARAMS, PARAMS, batch, 1.0)
    np.testing.assert_allclose(flat(both), flat(student), rtol=1e-12)


def test_penalty_on_the_base_path(x64):
    """The rollout has the marginal law of the base flow, and the gradient is that of the two separate means."""
    source, base, _ = laws()
    base_velocity = marginal_velocity(PATH, source, base)

    def base_drift(params, t, x, cond=None):
        return base_velocity(t, x)

    sample = jax.jit(gft.objectives.rolled_out(32), static_argnums=0)
    x = np.asarray(sample(base_drift, None, np.full(10_000, 0.6), batch_of(10_000).x0, None))
    law_at = jax.jit(lambda t: gft.gaussian.marginal_law(PATH, source, base, t))
    law, earlier = law_at(0.6), law_at(0.5)
    assert z_scores(x - law.mean).max() < 4.0
    assert z_scores(x - earlier.mean).max() > 6.0  # power
    np.testing.assert_allclose(np.cov(x.T), law.cov, atol=0.03)

    temperature, k = 0.8, 2
    rollout = gft.objectives.rolled_out(3)
    objective = gft.objectives.gradual(affine, PATH, base_drift=base_drift, base_path=rollout, base_every=k)
    batch = batch_of(24)
    rows = prepare(objective, PARAMS, PARAMS, batch, temperature).path

    @jax.jit
    @jax.grad
    def two_means(params):
        x_base = rollout(base_drift, None, rows.t[::k], batch.x0[::k], None)
        weight = 1 / (1 + temperature)
        data = squared_norm(affine(params, rows.t, rows.x) - rows.velocity)
        penalty = squared_norm(affine(params, None, x_base) - base_velocity(rows.t[::k], x_base))
        return weight * jnp.mean(data) + (1 - weight) * jnp.mean(penalty)

    ours, _ = gradient(objective, PARAMS, PARAMS, batch, temperature)
    np.testing.assert_allclose(flat(ours), flat(two_means(PARAMS)), rtol=1e-11)


def test_minimiser_on_the_base_path_is_each_drift_on_its_own_path():
    """The two penalties share no points, so the minimiser is the mean of both drifts, weighted by density."""
    temperature, time, num_rows = 1.5, 0.5, 40_000
    source, base, target = laws()
    base_velocity, target_velocity = (marginal_velocity(PATH, source, law) for law in (base, target))

    def base_drift(params, t, x, cond=None):
        return base_velocity(t, x)

    objective = gft.objectives.gradual(
        affine,
        PATH,
        base_drift=base_drift,
        base_path=gft.objectives.rolled_out(64),
        time_sampler=at_time(time),
    )

    @jax.jit
    def minimiser(batch):
        vector, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, PARAMS))

        def loss(vector):
            return gft.mean_loss(objective, unravel(vector), 0.0, batch, temperature)[0]

        return vector - jnp.linalg.solve(jax.hessian(loss)(vector), jax.grad(loss)(vector))

    @jax.jit
    def expected(weight):
        """The regression of both velocities on (x, 1), each under its own law of x."""
        left = right = 0.0
        for share, law, velocity in ((weight, target, target_velocity), (1 - weight, base, base_velocity)):
            mean, cov = gft.gaussian.marginal_law(PATH, source, law, time)
            extended = jnp.append(mean, 1.0)
            moments = jnp.outer(extended, extended).at[:2, :2].add(cov)
            params = affine_params_of(velocity, time)
            left += share * moments
            right += share * moments @ jnp.vstack([params["matrix"].T, params["offset"]])
        solution = jnp.linalg.solve(left, right)
        return flat({"matrix": solution[:2].T, "offset": solution[2]})

    estimates = np.asarray(jax.lax.map(minimiser, in_groups(batch_of(num_rows), 40)))
    weight = 1 / (1 + temperature)
    assert z_scores(estimates - expected(weight)).max() < 4.0
    assert z_scores(estimates - expected(weight + 0.1)).max() > 6.0  # power
