"""Sampling by an SDE: the law of its states is known without Monte Carlo where they are affine in the noise."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import laws, z_scores

from gft_jax import couplings, diffusions, gaussian, paths
from gft_jax.drifts import as_score, as_sde_drift, evaluate, from_function
from gft_jax.sampling import sample_ode, sample_sde, time_grids

EULER, HEUN = diffrax.Euler(), diffrax.Heun()
ZERO = from_function(lambda t, x: jnp.zeros_like(x))
ONE = diffusions.constant(1.0)


def increments(key, grid, num_rows, event_shape=()):
    """The noise that is documented: from fold_in(key of the row, step), zero where a step touches an end of time."""

    def of_row(row):
        keys = jax.vmap(lambda step: jax.random.fold_in(jax.random.fold_in(key, row), step))(
            jnp.arange(len(grid) - 1)
        )
        return jax.vmap(lambda key: jax.random.normal(key, event_shape))(keys)

    steps = np.diff(grid) * ((grid[:-1] > 0) & (grid[1:] < 1))
    noise = jax.jit(jax.vmap(of_row))(jnp.arange(num_rows))
    return np.asarray(noise) * np.sqrt(steps).reshape(-1, *(1,) * len(event_shape)), steps


def law_of_affine(x0, noise, steps, x1, source_cov):
    """Mean and covariance of ``x1 = a + C x0 + sum_k C_k dW_k``, x0 centred: a and C by least squares over rows."""
    num_rows, dim = x0.shape
    noisy = np.flatnonzero(steps)
    columns = np.hstack([np.ones((num_rows, 1)), x0, noise[:, noisy].reshape(num_rows, -1)])
    assert num_rows > columns.shape[1] + 10
    solution, *_ = np.linalg.lstsq(columns, x1, rcond=None)
    np.testing.assert_allclose(columns @ solution, x1, rtol=1e-8, atol=1e-8)  # it is affine
    spread = solution[1 : 1 + dim].T @ source_cov @ solution[1 : 1 + dim]
    for k, of_step in enumerate(solution[1 + dim :].reshape(-1, dim, dim)):
        spread = spread + steps[noisy[k]] * of_step.T @ of_step
    return solution[0], spread


@pytest.mark.parametrize("name", ["constant", "memoryless"])
def test_the_marginals_are_those_of_the_flow_for_every_noise_level(name, x64):
    """Exactly, up to the steps; and by samples. Power: without the score, or with its sign turned, they are not."""
    path = paths.trigonometric()
    source, _, target = laws()
    diffusion = {"constant": ONE, "memoryless": diffusions.memoryless(path)}[name]
    velocity = gaussian.marginal_velocity(path, source, target)
    drift = from_function(velocity)
    true_score = as_score(drift, path, coupling=couplings.independent())

    def score(scale, t, x, cond=None):
        return scale * true_score(None, t, x)

    num_rows, grid = 2000, time_grids.uniform(32)
    key_x0, key = jax.random.split(jax.random.key(3))
    x0 = np.asarray(jax.random.normal(key_x0, (num_rows, 2)))
    noise, steps = increments(key, grid, num_rows, (2,))

    def law_and_z_scores(scale):
        found = sample_sde(
            drift, jnp.asarray(scale), x0, key, score=score, diffusion=diffusion, times=grid, solver=HEUN
        )
        assert found.succeeded
        assert found.num_evaluations == 64
        x1 = np.asarray(found.x)
        mean, cov = law_of_affine(x0[:200], noise[:200], steps, x1[:200], np.eye(2))
        centred = x1 - np.asarray(target.mean)
        products = np.stack(
            [centred[:, i] * centred[:, j] - target.cov[i, j] for i, j in ((0, 0), (0, 1), (1, 1))], 1
        )
        return mean, cov, z_scores(np.hstack([centred, products])).max()

    mean, cov, z_score = law_and_z_scores(1.0)
    np.testing.assert_allclose(mean, target.mean, atol=2e-3)
    np.testing.assert_allclose(cov, target.cov, atol=4e-3)
    assert z_score < 4
    for wrong in (0.0, -1.0):
        _, cov, z_score = law_and_z_scores(wrong)
        assert np.abs(cov - target.cov).max() > 0.1
        assert z_score > 8


def test_on_the_variance_preserving_path_the_marginals_hold_short_of_its_end(x64):
    """The velocity is singular at t = 1, where Heun's method evaluates it, also on the last step, of the ODE."""
    path = paths.variance_preserving()
    source, _, target = laws()
    drift = from_function(gaussian.marginal_velocity(path, source, target))
    score, diffusion = as_score(drift, path, coupling=None), diffusions.memoryless(path)
    num_rows, key = 200, jax.random.key(0)
    x0 = np.asarray(jax.random.normal(jax.random.key(1), (num_rows, 2)))

    def sample(grid):
        return sample_sde(drift, None, x0, key, score=score, diffusion=diffusion, times=grid, solver=HEUN)

    grid = 0.95 * time_grids.uniform(64)
    found, (noise, steps) = sample(grid), increments(key, grid, num_rows, (2,))
    assert found.succeeded
    mean, cov = law_of_affine(x0, noise, steps, np.asarray(found.x), np.eye(2))
    law_at = jax.jit(lambda t: gaussian.marginal_law(path, source, target, t))
    there, before = law_at(0.95), law_at(0.94)
    np.testing.assert_allclose(mean, there.mean, atol=2e-3)
    np.testing.assert_allclose(cov, there.cov, atol=1e-3)
    assert np.abs(mean - before.mean).max() > 4e-3  # power
    assert np.abs(cov - before.cov).max() > 2e-3
    assert not sample(time_grids.uniform(64)).succeeded


@pytest.mark.parametrize(("solver", "order"), [(EULER, 1), (HEUN, 2)], ids=["Euler", "Heun"])
def test_weak_order_of_convergence_with_noise_that_depends_on_time(solver, order, x64):
    """Eight steps over an interval, and over half of it: the error of the moments falls by 2^(order + 1)."""
    path, (source, _, target) = paths.trigonometric(), laws()
    source, target = (gaussian.Gaussian(law.mean[:1], law.cov[:1, :1]) for law in (source, target))
    drift = from_function(gaussian.marginal_velocity(path, source, target))
    options = {"score": as_score(drift, path, coupling=None), "diffusion": diffusions.memoryless(path)}
    key, num_rows = jax.random.key(0), 40
    z = np.asarray(jax.random.normal(jax.random.key(1), (num_rows, 1)))
    errors = []
    for length in (0.01, 0.005):
        grid = 0.4 + length * time_grids.uniform(8)
        start, end = (gaussian.marginal_law(path, source, target, float(t)) for t in grid[[0, -1]])
        x0 = np.asarray(start.mean + jnp.sqrt(start.cov[0]) * z)
        found = sample_sde(drift, None, x0, key, times=grid, solver=solver, save_steps=True, **options)
        noise, steps = increments(key, grid, num_rows, (1,))
        offset, cov = law_of_affine(x0 - start.mean, noise, steps, np.asarray(found.x), start.cov)
        errors.append([abs(offset[0] - end.mean[0]), abs(cov - end.cov)[0, 0]])
    observed = np.log2(np.divide(*errors)) - 1
    np.testing.assert_allclose(observed, order, atol=0.05)
    assert found.num_evaluations == 8 * order
    assert found.trajectory.shape == (9, num_rows, 1)
    np.testing.assert_array_equal(found.trajectory[0], x0)
    np.testing.assert_array_equal(found.trajectory[-1], found.x)
    np.testing.assert_array_equal(found.times, grid)


@pytest.mark.parametrize(("solver", "order"), [(EULER, 1), (HEUN, 2)], ids=["Euler", "Heun"])
def test_one_step_of_a_nonlinear_drift_has_the_moments_of_its_weak_order(solver, order, x64):
    """``E f(X_h) = f + h L f + h^2 / 2 L L f + O(h^3)``, ``L f = b f' + g^2 / 2 f''``: quadratic b, f = x and x^2.

    What Gaussian flows cannot see: the midpoint method, of weak order 1, has their moments to second order.
    """
    level, start = 0.8, 0.6

    def drift_of_x(x):
        return level**2 / 2 * (1 - x + 0.7 * x**2)

    def generator(f):
        first = jax.grad(f)
        return lambda x: drift_of_x(x) * first(x) + level**2 / 2 * jax.grad(first)(x)

    score = from_function(lambda t, x: 1 - x + 0.7 * x**2)
    num_rows, errors = 12, []
    for h in (0.1, 0.05):
        grid = np.array([0.0, 0.25, 0.25 + h, 1.0])
        noise, _ = increments(jax.random.key(0), grid, num_rows)
        found = sample_sde(
            ZERO,
            None,
            np.full(num_rows, start),
            jax.random.key(0),
            score=score,
            diffusion=diffusions.constant(level),
            times=grid,
            solver=solver,
        )
        # X_h is a quadratic polynomial in the increment, whose moments are known.
        coefficients, residual, *_ = np.polyfit(noise[:, 1], np.asarray(found.x), 2, full=True)
        assert residual < 1e-20
        a2, a1, a0 = coefficients
        moments = a0 + a2 * h, a0**2 + a1**2 * h + 2 * a0 * a2 * h + 3 * a2**2 * h**2
        for moment, f in zip(moments, (lambda x: x, lambda x: x**2), strict=True):
            once = generator(f)
            expected = f(start) + h * once(start) + h**2 / 2 * generator(once)(start)
            errors.append(abs(float(moment - expected)))
    observed = np.log2(np.array(errors[:2]) / np.array(errors[2:])) - 1
    np.testing.assert_allclose(observed, order, atol=0.3)


def test_the_increments_are_independent_standard_noise():
    num_rows = 4000
    grid = time_grids.shifted(time_grids.uniform(4), 2.0)
    zeros = np.zeros((num_rows, 2), np.float32)
    found = sample_sde(
        ZERO, None, zeros, jax.random.key(5), score=ZERO, diffusion=ONE, times=grid, save_steps=True
    )
    steps = np.diff(found.trajectory, axis=0)
    np.testing.assert_array_equal(steps[[0, -1]], 0.0)  # the ODE's, at both ends of time
    z = steps[1:-1] / np.sqrt(np.diff(grid)[1:-1])[:, None, None]
    z = np.moveaxis(z, 1, 0).reshape(num_rows, -1)
    products = np.einsum("ri,rj->rij", z, z) - np.eye(z.shape[1])
    neighbours = z[1:] * z[:-1]
    for rows in (z, products.reshape(num_rows, -1), neighbours, z**4 - 3):
        assert z_scores(rows).max() < 4
    assert z_scores(1.1 * products + 0.1 * np.eye(z.shape[1])).max() > 5  # power: variance 1.1


def test_a_row_s_noise_comes_from_its_key_alone_and_chunks_change_nothing():
    score = from_function(lambda t, x, cond: -x + cond[:, None])
    zero = from_function(lambda t, x, cond: jnp.zeros_like(x))
    x0 = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    cond = np.arange(5, dtype=np.float32)
    key = jax.random.key(2)
    sample = functools.partial(sample_sde, zero, None, score=score, diffusion=ONE, num_steps=6)
    whole = sample(x0, key, cond=cond, save_steps=True)
    chunked = sample(x0, key, cond=cond, save_steps=True, chunk_size=2)
    assert isinstance(chunked.x, np.ndarray)
    np.testing.assert_allclose(chunked.x, whole.x, rtol=1e-6)
    np.testing.assert_allclose(chunked.trajectory, whole.trajectory, rtol=1e-6)
    np.testing.assert_array_equal(chunked.times, whole.times)
    assert chunked.succeeded.tolist() == [True] * 5
    assert chunked.num_evaluations.tolist() == [6] * 5
    # In another order, among others, with keys of its own.
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(5))
    order = np.array([3, 0, 4])
    few = sample(x0[order], keys[order], cond=cond[order])
    np.testing.assert_allclose(few.x, whole.x[order], rtol=1e-6)
    assert np.abs(sample(x0, jax.random.key(3), cond=cond).x - whole.x).min() > 1e-4


def test_the_ends_of_time_are_not_touched_by_score_and_noise(x64):
    """With a score and a noise level that are NaN there, samples and gradients are finite."""

    def inside(t):
        return jnp.where((t > 0) & (t < 1), 1.0, jnp.nan)

    score = from_function(lambda t, x: -x * inside(t)[:, None])
    drift = from_function(lambda t, x: jnp.ones_like(x))
    options = {"score": score, "diffusion": lambda t: 0.5 * inside(t), "solver": HEUN}
    x0, key = jnp.ones((2, 1)), jax.random.key(0)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(x0):
        found = sample_sde(drift, None, x0, key, num_steps=3, **options)
        return jnp.sum(found.x), found

    (_, found), gradient = total(x0)
    assert found.succeeded
    # A step of the ODE, one of the SDE, one of the ODE; x enters the middle one by -g^2/2 x.
    rate, h = -(0.5**2) / 2, 1 / 3
    np.testing.assert_allclose(gradient, 1 + h * rate + h**2 * rate**2 / 2, rtol=1e-12)
    # Away from the ends every step has noise; at them, a sample that is not finite is reported.
    middle = sample_sde(drift, None, x0, key, t0=0.25, t1=0.75, num_steps=1, **options)
    assert np.abs(middle.x - 1.5).min() > 1e-3
    broken = sample_sde(
        from_function(lambda t, x: x * jnp.nan), None, x0, key, score=score, diffusion=ONE, num_steps=3
    )
    assert not broken.succeeded


def test_another_number_as_parameter_is_no_new_program():
    num_traces, diffusion = 0, diffusions.constant(0)

    def drift(rate, t, x, cond=None):
        nonlocal num_traces
        num_traces += 1
        return rate * jnp.ones_like(x)

    def sample(rate):
        options = {"score": ZERO, "diffusion": diffusion, "num_steps": 3}
        return sample_sde(drift, rate, np.zeros((2, 1), np.float32), jax.random.key(0), **options).x

    np.testing.assert_allclose(sample(0.5), 0.5, rtol=1e-6)
    of_one_program = num_traces
    np.testing.assert_allclose(sample(0.75), 0.75, rtol=1e-6)
    np.testing.assert_allclose(sample(2), 2, rtol=1e-6)  # an integer is another dtype
    assert num_traces == 2 * of_one_program


def test_without_noise_it_is_the_ode():
    drift = from_function(lambda t, x: jnp.cos(3 * x + t[:, None]))
    x0 = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    score = from_function(lambda t, x: x)
    found = sample_sde(
        drift, None, x0, jax.random.key(0), score=score, diffusion=diffusions.constant(0), num_steps=5
    )
    np.testing.assert_allclose(found.x, sample_ode(drift, None, x0, num_steps=5).x, rtol=1e-5)


def test_score_and_sde_drift_are_their_formulas_and_the_score_is_refused_under_dependence():
    t, x = jnp.array([0.25, 0.5]), jnp.array([[1.0, -2.0], [0.5, 3.0]])

    def gaussian_velocity(std, t, x, cond=None):
        t = t[:, None]
        return (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * x

    score = as_score(gaussian_velocity, paths.linear(), coupling=None)
    expected = -x / (t**2 * 4 + (1 - t) ** 2)[:, None]
    np.testing.assert_allclose(evaluate(score, 2.0, t, x), expected, rtol=1e-5)
    sde_drift = as_sde_drift(gaussian_velocity, score, diffusions.memoryless(paths.linear()))
    # For the memoryless level 2 v - x / t, see Domingo-Enrich et al., arXiv:2409.08861.
    expected = 2 * gaussian_velocity(2.0, t, x) - x / t[:, None]
    np.testing.assert_allclose(evaluate(sde_drift, 2.0, t, x), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"one noise level a row, shape \(2,\), got \(\)"):
        evaluate(as_sde_drift(gaussian_velocity, score, lambda t: jnp.ones(())), 2.0, t, x)
    for coupling in (couplings.exact(), couplings.sinkhorn()):
        with pytest.raises(ValueError, match="dependent ends x0 given x1 is not"):
            as_score(gaussian_velocity, paths.linear(), coupling=coupling)
    with pytest.raises(ValueError, match="its velocity does not determine its score"):
        as_score(gaussian_velocity, paths.brownian_bridge(1.0), coupling=None)


def test_mistakes_are_named(without_hook):
    x0, key = jnp.ones((2, 3)), jax.random.key(0)
    rows = [
        ({"x0": jnp.ones((0, 3))}, r"not empty, got shape \(0, 3\)"),
        ({"x0": 1j * x0}, "real numbers, got dtype complex64"),
        ({"cond": np.ones(1)}, r"cond must have one row for each of the 2 samples, got shape \(1,\)"),
        ({"num_steps": 10.0}, "num_steps must be an integer, got 10.0"),
        ({"solver": diffrax.Midpoint()}, "got Midpoint: the weak order"),
        ({"num_steps": 2}, r"\[0.0, 0.5, 1.0\] has noise.*three steps"),
        ({"t0": 1.0, "t1": 0.0}, "forwards in time.*from 1.0 to 0.0"),
        ({"progress": True}, "give chunk_size"),
        ({"key": jax.random.PRNGKey(0)}, "must be typed.*uint32"),
        ({"key": 0}, "must be typed, from jax.random.key, got 0"),
        ({"key": None}, "must be typed, from jax.random.key, got None"),
        ({"key": jax.random.split(key, 3)}, r"each of the 2 rows, got shape \(3,\)"),
        ({"diffusion": 1.0}, r"function of flow time, got 1.0: .*diffusions.constant\(level\)"),
        ({"diffusion": lambda t: jnp.ones((*t.shape, 1))}, r"shape \(2,\), got \(2, 1\)"),
        ({"score": from_function(lambda t, x: x[:, :1])}, r"\(2, 1\).*\(2, 3\)"),
    ]
    for change, message in rows:
        arguments = {"x0": x0, "key": key, "score": ZERO, "diffusion": ONE} | change
        with pytest.raises(ValueError, match=message):
            sample_sde(ZERO, None, arguments.pop("x0"), arguments.pop("key"), **arguments)
