"""Gaussian flows: closed forms, the equations they must solve, and Monte Carlo with power checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from gft_jax import gaussian, paths
from gft_jax.gaussian import Gaussian


def _law(seed, dim=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    cov = root @ root.T / dim + 0.2 * np.eye(dim)
    return Gaussian(jnp.asarray(rng.normal(size=dim), dtype), jnp.asarray(cov, dtype))


def _scalar_law(mean, sd):
    return Gaussian(jnp.array([mean]), jnp.array([[sd**2]]))


def _assert_laws_agree(found, wanted, tolerance):
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.cov, wanted.cov, rtol=tolerance, atol=tolerance)


# ---- One law, two laws


def test_log_density_agrees_with_scipy(x64):
    law = _law(0)
    x = np.random.default_rng(1).normal(size=(2, 5, 3))
    expected = scipy.stats.multivariate_normal(law.mean, law.cov).logpdf(x)
    many, one = jax.jit(lambda x: (gaussian.log_density(law, x), gaussian.log_density(law, x[0, 0])))(x)
    np.testing.assert_allclose(many, expected, rtol=1e-12)
    np.testing.assert_allclose(one, expected[0, 0], rtol=1e-12, strict=True)


def test_w2_agrees_with_the_bures_formula_and_with_the_cost_of_the_monge_map(x64):
    p, q = _law(0), _law(1)
    (p_mean, p_cov), (q_mean, q_cov) = jax.tree.map(np.asarray, (p, q))
    root = scipy.linalg.sqrtm(p_cov)
    bures = np.trace(p_cov + q_cov - 2 * scipy.linalg.sqrtm(root @ q_cov @ root))
    distance = np.sqrt(np.sum((p_mean - q_mean) ** 2) + bures)
    w2 = jax.jit(gaussian.w2)
    np.testing.assert_allclose(w2(p, q), distance, rtol=1e-12)
    np.testing.assert_allclose(w2(q, p), distance, rtol=1e-12)

    matrix, offset = jax.tree.map(np.asarray, jax.jit(gaussian.monge_map)(p, q))
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12, atol=1e-14)
    assert np.all(np.linalg.eigvalsh(matrix) > 0)  # the gradient of a convex function: optimal
    np.testing.assert_allclose(matrix @ p_cov @ matrix.T, q_cov, rtol=1e-12)
    np.testing.assert_allclose(matrix @ p_mean + offset, q_mean, rtol=1e-12)
    cost = np.sum((p_mean - q_mean) ** 2) + np.trace(p_cov + q_cov - 2 * matrix @ p_cov)
    np.testing.assert_allclose(np.sqrt(cost), distance, rtol=1e-12)

    assert w2(p, p) < 1e-13
    near = Gaussian(p.mean, jnp.asarray(p_cov * (1 + 1e-9) ** 2))
    np.testing.assert_allclose(w2(p, near), 1e-9 * np.sqrt(np.trace(p_cov)), rtol=1e-5)
    point = Gaussian(jnp.zeros(3), jnp.zeros((3, 3)))
    np.testing.assert_allclose(w2(point, p), np.sqrt(np.sum(p_mean**2) + np.trace(p_cov)), rtol=1e-12)


def test_samples_have_the_mean_and_the_covariance_of_the_law(x64):
    num_samples = 20_000
    draw = jax.jit(gaussian.sample, static_argnums=2)
    law = _law(0)
    x = np.asarray(draw(jax.random.key(1), law, num_samples))

    def largest_z(mean, cov):
        whitened = np.linalg.solve(np.linalg.cholesky(cov), (x - mean).T)
        z_mean = np.mean(whitened, axis=1) * np.sqrt(num_samples)
        deviation = whitened @ whitened.T / num_samples - np.eye(3)
        z_cov = deviation * np.sqrt(num_samples / (1 + np.eye(3)))
        return max(np.max(np.abs(z_mean)), np.max(np.abs(z_cov)))

    mean, cov = np.asarray(law.mean), np.asarray(law.cov)
    assert largest_z(mean, cov) < 4
    assert largest_z(mean + 0.1, cov) > 8
    assert largest_z(mean, 1.15 * cov) > 8
    assert not np.any(x == draw(jax.random.key(2), law, num_samples))

    direction = jnp.array([1.0, 2.0, -1.0])
    singular = draw(jax.random.key(1), Gaussian(jnp.zeros(3), jnp.outer(direction, direction)), num_samples)
    np.testing.assert_allclose(singular, singular[:, :1] * direction, atol=1e-6)


# ---- Marginals of a path


def test_marginal_velocity_of_the_linear_path_has_its_closed_form(x64):
    source, target = Gaussian(jnp.zeros(3), jnp.eye(3)), _law(1)
    mean, cov = np.asarray(target.mean), np.asarray(target.cov)
    rng = np.random.default_rng(2)
    t, x = np.array([0.0, 0.3, 0.8, 1.0]), rng.normal(size=(4, 3))
    found = jax.jit(gaussian.marginal_velocity(paths.linear(), source, target))(t, x)
    for velocity, time, position in zip(found, t, x, strict=True):
        gain = (time * cov - (1 - time) * np.eye(3)) @ np.linalg.inv(
            time**2 * cov + (1 - time) ** 2 * np.eye(3)
        )
        np.testing.assert_allclose(velocity, mean + gain @ (position - time * mean), rtol=1e-11, atol=1e-11)


def test_marginal_law_has_its_closed_form_for_every_kind_of_path(x64):
    source, target = _law(0), _law(1)
    cross = np.arange(9.0).reshape(3, 3) / 30
    t = 0.3
    weights = {
        paths.linear(): (t, 1 - t, 0.0),
        paths.trigonometric(): (np.sin(np.pi / 2 * t), np.cos(np.pi / 2 * t), 0.0),
        paths.with_constant_noise(paths.linear(), 0.5): (t, 1 - t, 0.25),
        paths.brownian_bridge(0.8): (t, 1 - t, 0.64 * t * (1 - t)),
    }

    @jax.jit
    def laws(cross):
        return [
            [gaussian.marginal_law(path, source, target, t, c) for c in (None, cross)] for path in weights
        ]

    (m0, s0), (m1, s1) = jax.tree.map(np.asarray, (source, target))
    for found, (alpha, sigma, variance) in zip(laws(cross), weights.values(), strict=True):
        mean = alpha * m1 + sigma * m0
        cov = alpha**2 * s1 + sigma**2 * s0 + variance * np.eye(3)
        _assert_laws_agree(found[0], Gaussian(mean, cov), 1e-12)
        _assert_laws_agree(found[1], Gaussian(mean, cov + alpha * sigma * (cross + cross.T)), 1e-12)


def test_marginal_velocity_under_the_optimal_coupling_is_that_of_the_map(x64):
    source, target = _law(0), _law(1)
    matrix, offset = gaussian.monge_map(source, target)
    t, x0 = jnp.linspace(0, 1, 6), source.mean + jnp.asarray(np.random.default_rng(2).normal(size=(6, 3)))

    @jax.jit
    def velocities(path_x1):
        found = []
        for path in (paths.linear(), paths.trigonometric()):
            x, velocity, _ = path.point(t, x0, path_x1, None)
            crosses = (matrix @ source.cov, None)
            marginals = [gaussian.marginal_velocity(path, source, target, cross)(t, x) for cross in crosses]
            found.append((velocity, *marginals))
        return found

    for velocity, optimal, independent in velocities(x0 @ matrix.T + offset):
        np.testing.assert_allclose(optimal, velocity, rtol=1e-10, atol=1e-10)
        assert np.max(np.abs(independent - velocity)) > 0.1


def test_marginal_velocity_is_the_regression_of_the_conditional_one(x64):
    num_samples, t = 10_000, 0.3
    source, target = _law(0), _law(1)
    # A coupling that is far from independent, from a map and from symmetric.
    turn = scipy.linalg.expm(np.array([[0, 0.9, -0.4], [-0.9, 0, 0.6], [0.4, -0.6, 0]]))
    cross = jnp.linalg.cholesky(target.cov) @ (0.8 * turn) @ jnp.linalg.cholesky(source.cov).T
    joint = Gaussian(
        jnp.concatenate([source.mean, target.mean]), jnp.block([[source.cov, cross.T], [cross, target.cov]])
    )
    x0, x1 = jnp.split(gaussian.sample(jax.random.key(0), joint, num_samples), 2, axis=1)
    keys = jax.random.split(jax.random.key(1), num_samples)
    times = jnp.full(num_samples, t)

    @jax.jit
    def largest_z(candidates):
        """Of the products of the residual u_t - v(t, x_t) with 1 and x_t, all of mean zero for the true v."""
        found = []
        for path in (paths.with_constant_noise(paths.linear(), 0.5), paths.brownian_bridge(0.8)):
            point = path.sample(keys, times, x0, x1)
            regressors = jnp.concatenate([jnp.ones((num_samples, 1)), point.x], axis=1)

            def of_cross(candidate, path=path, point=point, regressors=regressors):
                velocity = gaussian.marginal_velocity(path, source, target, candidate)(times, point.x)
                products = (point.velocity - velocity)[:, :, None] * regressors[:, None, :]
                z = jnp.mean(products, axis=0) / jnp.std(products, axis=0) * num_samples**0.5
                return jnp.max(jnp.abs(z))

            found.append(jax.lax.map(of_cross, candidates))
        return jnp.stack(found)

    true, independent, weaker, transposed = largest_z(jnp.stack([cross, 0 * cross, 0.8 * cross, cross.T])).T
    assert np.all(true < 4)
    for wrong in (independent, weaker, transposed):
        assert np.all(wrong > 8)


# ---- Laws generated by an ODE


@pytest.mark.parametrize(
    ("path", "t0", "t1", "optimal"),
    [
        (paths.linear(), 0.0, 1.0, True),
        (paths.linear(floor=0.1), 0.0, 1.0, False),
        (paths.trigonometric(), 0.0, 1.0, False),
        (paths.variance_preserving(), 0.0, 0.98, False),
        (paths.brownian_bridge(0.8), 0.02, 0.98, False),
    ],
)
def test_the_ode_of_the_marginal_velocity_carries_the_marginals(x64, path, t0, t1, optimal):
    source, target = _law(0), _law(1)

    @jax.jit
    def found_and_expected():
        cross = gaussian.monge_map(source, target).matrix @ source.cov if optimal else None
        velocity = gaussian.marginal_velocity(path, source, target, cross)
        start, end = (gaussian.marginal_law(path, source, target, t, cross) for t in (t0, t1))
        return gaussian.generated_law(velocity, start, t0, t1), end

    found, end = found_and_expected()
    _assert_laws_agree(found, end, 1e-9)
    if t1 == 1.0:
        floor = float(path.sigma(1.0))
        at_the_data = Gaussian(target.mean + floor * source.mean, target.cov + floor**2 * source.cov)
        _assert_laws_agree(found, at_the_data, 1e-9)


def test_the_blended_drift_generates_the_geometric_mean_of_the_spreads(x64):
    source, pre, target = _scalar_law(0.0, 1.0), _scalar_law(0.0, 1.0), _scalar_law(3.0, 0.5)
    weights = np.array([0.0, 1 / 2, 1 / 1.1, 1.0])
    # Each path with the variance that it leaves at t = 1
    table = [(paths.linear(), 0.0), (paths.trigonometric(), 0.0), (paths.linear(floor=0.1), 0.01)]

    @jax.jit
    def laws(weights):
        def of_path(path):
            velocities = [gaussian.marginal_velocity(path, source, law) for law in (pre, target)]
            return jax.vmap(
                lambda w: gaussian.generated_law(gaussian.blended_velocity(*velocities, w), source)
            )(weights)

        return [of_path(path) for path, _ in table]

    found = laws(weights)
    for law, (_, left) in zip(found, table, strict=True):
        spread = np.sqrt(1 + left) ** (1 - weights) * np.sqrt(0.25 + left) ** weights
        np.testing.assert_allclose(np.sqrt(law.cov[:, 0, 0]), spread, rtol=1e-9)
        np.testing.assert_allclose(law.mean[[0, -1], 0], [0.0, 3.0], atol=1e-9)
    # Linear path at the temperatures 1 and 0.1
    np.testing.assert_allclose(found[0].mean[[1, 2], 0], [1.839, 2.828], atol=5e-4)
    np.testing.assert_allclose(np.sqrt(found[0].cov[[1, 2], 0, 0]), [0.7071, 0.5325], atol=5e-5)


def test_generated_law_converges_with_order_four_and_runs_backwards(x64):
    source, target = _scalar_law(0.0, 1.0), _scalar_law(3.0, 2.0)
    velocity = gaussian.marginal_velocity(paths.trigonometric(), source, target)

    @jax.jit
    def coarse_fine_and_back():
        coarse, fine = (gaussian.generated_law(velocity, source, num_steps=n).cov[0, 0] for n in (32, 64))
        return coarse, fine, gaussian.generated_law(velocity, target, t0=1.0, t1=0.0)

    coarse, fine, back = coarse_fine_and_back()
    assert 15 < (coarse - 4) / (fine - 4) < 17
    _assert_laws_agree(back, source, 1e-9)


# ---- Contracts


def test_single_precision_stays_single_and_agrees(x64):
    def values(source, target):
        x = jnp.stack([source.mean, target.mean])
        velocity = gaussian.marginal_velocity(paths.linear(), source, target)
        return gaussian.log_density(source, x), gaussian.w2(source, target), velocity(x[:, 0] ** 2, x)

    def everything(key, source, target):
        velocity = gaussian.marginal_velocity(paths.linear(), source, target)
        blend = gaussian.blended_velocity(velocity, lambda t, x: -x, 0.5)
        return (
            gaussian.sample(key, source, 2),
            gaussian.monge_map(source, target),
            gaussian.marginal_law(paths.trigonometric(), source, target, 0.3),
            gaussian.generated_law(blend, source),
            values(source, target),
        )

    single, double = ([_law(seed, dtype=dtype) for seed in (0, 1)] for dtype in (np.float32, np.float64))
    for laws in (single, double):
        found = jax.eval_shape(everything, jax.random.key(0), *laws)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {laws[0].mean.dtype}
    for low, high in zip(jax.jit(values)(*single), jax.jit(values)(*double), strict=True):
        np.testing.assert_allclose(low, high, rtol=2e-5, atol=2e-5)


def test_wrong_arguments_are_refused(without_hook):
    two, three = _law(0, dim=2, dtype=np.float32), _law(0, dtype=np.float32)
    velocity = gaussian.marginal_velocity(paths.linear(), two, two)
    broken = Gaussian(two.mean, three.cov)
    refusals = [
        (lambda: gaussian.sample(jax.random.key(0), two, 0), "num_samples is 0"),
        (lambda: gaussian.sample(jax.random.key(0), broken, 1), r"shape \(2,\) and the covariance \(3, 3\)"),
        (lambda: gaussian.log_density(two, three.mean), r"x has shape \(3,\), but the mean has shape \(2,\)"),
        (lambda: gaussian.w2(two, three), r"means have shapes \(2,\) and \(3,\)"),
        (lambda: gaussian.monge_map(two, three), r"means have shapes \(2,\) and \(3,\)"),
        (
            lambda: gaussian.marginal_law(paths.linear(), two, two, 0.5, three.cov),
            r"cross has shape \(3, 3\), but the covariances \(2, 2\)",
        ),
        (
            lambda: velocity(jnp.zeros(4), jnp.zeros((5, 2))),
            r"x has shape \(5, 2\), but t has shape \(4,\)",
        ),
        (lambda: gaussian.blended_velocity(velocity, velocity, 1.5), r"target_weight is 1\.5; .* \[0, 1\]"),
        (lambda: gaussian.generated_law(velocity, two, num_steps=0), "num_steps is 0"),
    ]
    for refused, message in refusals:
        with pytest.raises(ValueError, match=message):
            refused()


# ---- Average velocities


def _commuting(seed):
    """A source of equal variances and a target law."""
    target = _law(seed)
    return Gaussian(jnp.asarray([0.1, -0.2, 0.3]), 1.3 * jnp.eye(3)), target


@pytest.mark.parametrize(
    ("path", "optimal"),
    [
        (paths.linear(), False),
        (paths.linear(), True),
        (paths.trigonometric(), False),
        (paths.with_constant_noise(paths.linear(), 0.3), True),
        (paths.variance_preserving(), False),
    ],
)
def test_the_average_velocity_obeys_the_identity_of_mean_flow(x64, path, optimal):
    """``u = v + (s - t) du/dt`` along the flow of v, du/dt by forward mode; with v it is the only bounded solution."""
    source, target = _commuting(4)
    cross = gaussian.monge_map(source, target).matrix @ source.cov if optimal else None
    velocity = gaussian.marginal_velocity(path, source, target, cross)
    average = gaussian.average_velocity(path, source, target, cross)
    first, second, x = np.split(np.random.default_rng(0).uniform(0.01, 0.99, (64, 5)), [1, 2], axis=1)
    t, s, x = (
        jnp.asarray(a) for a in (np.minimum(first, second)[:, 0], np.maximum(first, second)[:, 0], 4 * x - 2)
    )

    @jax.jit
    def both(t, s, x):
        def rate(v):
            return jax.jvp(lambda t, x: average(t, s, x), (t, x), (jnp.ones_like(t), v))

        v = velocity(t, x)
        (u, along), (_, other) = rate(v), rate(1.1 * v)
        return u, v + (s - t)[:, None] * along, v + (s - t)[:, None] * other, average(t, t, x), v

    u, identity, other, at_t, v = both(t, s, x)
    np.testing.assert_allclose(u, identity, atol=1e-10, rtol=1e-8)
    assert np.abs(u - other).max() > 1e-2  # power
    np.testing.assert_array_equal(at_t, v)


def test_the_average_velocity_steps_along_the_flow(x64):
    source, target = _commuting(5)
    average = jax.jit(gaussian.average_velocity(paths.linear(), source, target))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))

    def step(start, end, x):
        t, s = (jnp.full(len(x), time) for time in (start, end))
        return x + (end - start) * average(t, s, x)

    there = step(0.0, 1.0, x)
    np.testing.assert_allclose(step(0.4, 1.0, step(0.0, 0.4, x)), there, rtol=1e-10)
    np.testing.assert_allclose(step(1.0, 0.0, there), x, atol=1e-10)
    law = gaussian.generated_law(gaussian.marginal_velocity(paths.linear(), source, target), source)
    end = step(0.0, 1.0, source.mean[None])[0]
    stretch = jax.jacobian(lambda x: step(0.0, 1.0, x[None])[0])(source.mean)
    _assert_laws_agree(Gaussian(end, stretch @ source.cov @ stretch.T), law, 1e-9)


def test_an_average_velocity_without_a_closed_form_is_refused(x64):
    with pytest.raises(ValueError, match="symmetric and commute"):
        gaussian.average_velocity(paths.linear(), _law(0), _law(1))
    turn = jnp.asarray([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match="symmetric and commute"):
        gaussian.average_velocity(paths.linear(), *_commuting(4), 0.1 * turn)
