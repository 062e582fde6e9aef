"""Deterministic adjoint matching: its paths, its adjoint, its gradient and its optimum."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_toy import flat
from reward_toy import (
    AWAY,
    BASE,
    CENTRE,
    KAPPA,
    LAM,
    best_control,
    by_step,
    network,
    noise,
    normal_base,
    wavy,
)
from scipy import optimize

import gft_jax as gft
from gft_jax.objectives.adjoints import LastSteps
from gft_jax.objectives.rollouts import last_states, ode_step, step_of, velocity_of

adjoint_matching = gft.objectives.adjoint_matching
gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
mean_loss = jax.jit(gft.mean_loss, static_argnums=0)
NUM_STEPS = 7
ZERO = jnp.zeros(())


@jax.jit(static_argnums=0)
def prepared(method, params, base_params, state, batch):
    return method.prepare(params, base_params, state, batch, ZERO)


UNEVEN = np.array([0.0, 0.1, 0.3, 0.35, 0.7, 1.0])
POINT = gft.rewards.quadratic(CENTRE, KAPPA)


def control_problem(params, base, x0, grid, cond=None, drift=network):
    """Mean over rows of ``r(x_1) - lam sum h |u|^2 / 2`` by Euler's method, written out."""
    x, price = x0, 0.0
    for t, h in zip(grid[:-1], np.diff(grid), strict=True):
        at = jnp.full(len(x), t)
        velocity = drift(params, at, x, cond)
        price += h * 0.5 * jnp.sum((velocity - drift(base, at, x, cond)) ** 2, axis=1)
        x = x + h * velocity
    return jnp.mean(wavy(x) - LAM * price)


# Paths


def test_row_by_row_a_path_shares_what_depends_on_time_alone():
    shapes = []

    def drift(params, t, x, cond=None):
        shapes.append((t.shape, x.shape))
        return params * jnp.sin(t)[:, None] * x + cond[:, None]

    x, cond = jnp.arange(12.0).reshape(4, 3), jnp.arange(4.0)
    expected = 2 * np.sin(0.3) * x + cond[:, None]
    for row_by_row in (True, False):
        velocity = velocity_of(drift, jnp.float32(2), cond, row_by_row)(jnp.float32(0.3), x)
        np.testing.assert_allclose(velocity, expected, rtol=1e-6)
    assert shapes == [((1,), (1, 3)), ((4,), (4, 3))]


def test_row_by_row_the_rows_are_the_same():
    ours, theirs = (
        prepared(
            adjoint_matching(
                network, wavy, cost_weight=LAM, num_steps=6, truncation=3, row_by_row=row_by_row
            ),
            AWAY,
            BASE,
            (),
            noise(5),
        )
        for row_by_row in (True, False)
    )
    for mine, other in zip(ours[:5], theirs[:5], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    assert np.abs(theirs.control).max() > 0.1


# The adjoint


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Heun()], ids=["Euler", "Heun"])
def test_at_the_base_the_lean_adjoint_is_the_gradient_of_the_reward_through_the_sampler(x64, solver):
    x0 = noise(5).x0

    @jax.jit
    def both(base):
        advance = ode_step(solver, velocity_of(network, base, None))
        states = last_states(advance, x0, UNEVEN, 5)
        velocity, step = velocity_of(network, base, None), step_of(solver)
        path = LastSteps(states, jnp.asarray(UNEVEN[:-1]), jnp.asarray(np.diff(UNEVEN)), velocity, velocity)
        end = jax.grad(lambda x: jnp.sum(wavy(x)))(states[-1])
        along = gft.objectives.lean_adjoint(path, end, step, gft.control_costs.quadratic(), LAM, 2)

        def from_state(first):
            def reward(x):
                for t, h in zip(UNEVEN[first:-1], np.diff(UNEVEN[first:]), strict=True):
                    x = step(velocity, jnp.asarray(t), jnp.asarray(h), x)[0]
                return jnp.sum(wavy(x))

            return jax.grad(reward)(states[first])

        return along, [from_state(0), from_state(3)], states

    along, (at_start, inside), states = both(BASE)
    np.testing.assert_allclose(along.at_start[0], at_start, rtol=1e-10)
    np.testing.assert_allclose(along.at_end[2], inside, rtol=1e-10)
    np.testing.assert_allclose(along.base_velocity[3], network(BASE, jnp.full(5, UNEVEN[3]), states[3]))
    sample = gft.sampling.sample_ode(network, BASE, x0, times=UNEVEN, solver=solver)
    np.testing.assert_allclose(states[-1], sample.x, rtol=1e-12)


@pytest.mark.parametrize(
    ("params", "adjoint", "is_exact"),
    [
        (BASE, gft.objectives.lean_adjoint, True),
        (AWAY, gft.objectives.full_adjoint, True),
        (AWAY, gft.objectives.lean_adjoint, False),
    ],
    ids=["lean at the base", "full away", "lean away"],
)
@pytest.mark.parametrize("uneven", [False, True])
def test_gradient_is_that_of_the_unrolled_control_problem(x64, params, adjoint, is_exact, uneven):
    """Times -2 / lam, with the quadratic cost and all steps."""
    grid = UNEVEN if uneven else np.linspace(0.0, 1.0, NUM_STEPS + 1)
    cond = jnp.array([0.3, -1.0, 0.0, 0.5])
    batch = noise(4, cond=cond)
    method = adjoint_matching(network, wavy, cost_weight=LAM, times=grid, adjoint=adjoint)
    ours = flat(gradient(method, params, BASE, batch)[0])
    problem = jax.jit(jax.grad(lambda params: control_problem(params, BASE, batch.x0, grid, cond)))
    expected = -2 / LAM * flat(problem(params))
    if is_exact:
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)
        return
    cosine = ours @ expected / np.linalg.norm(ours) / np.linalg.norm(expected)
    assert 0.95 < cosine < 1 - 1e-6  # close, not equal: so the tests above tell the two adjoints apart


# Truncation


def test_truncation_touches_the_last_steps_alone_and_they_are_as_without(x64):
    base = normal_base(10, 0.6)
    whole, last = (
        gradient(
            adjoint_matching(by_step(10), POINT, cost_weight=LAM, num_steps=10, truncation=truncation),
            base,
            base,
            noise(6, dim=1),
        )[0]
        for truncation in (None, 3)
    )
    for name in base:
        assert np.all(last[name][:7] == 0.0)
        assert np.all(whole[name] != 0.0)
        # The mean is over three steps instead of ten.
        np.testing.assert_allclose(last[name][7:], 10 / 3 * whole[name][7:], rtol=1e-10)


@pytest.mark.parametrize("truncation", [50, 10, 3])
def test_truncated_control_is_as_weak_as_the_formula_says(x64, truncation):
    """``J_K = (kappa / 2) (1 + m^2) / (1 + kappa K / (lam N))``, in expectation, so by x0: with ``(x0 - m)^2``."""
    base = {"slope": np.zeros(50), "offset": np.zeros(50)}
    best = best_control(base, first=50 - truncation)
    method = adjoint_matching(by_step(50), POINT, cost_weight=LAM, num_steps=50, truncation=truncation)
    batch = noise(8, dim=1)
    _, stats = mean_loss(method, best, base, batch)
    assert stats["matching_loss"] < 1e-20
    price = 0.5 * stats["squared_control"] * truncation / 50
    expected = jnp.mean((batch.x0 - CENTRE) ** 2) * KAPPA / 2 / (1 + KAPPA * truncation / (LAM * 50))
    np.testing.assert_allclose(-stats["reward"] + LAM * price, expected, rtol=1e-10)
    known = {50: 1.0, 10: 2.778, 3: 4.032}[truncation]
    scale = (1 + CENTRE**2) / jnp.mean((batch.x0 - CENTRE) ** 2)
    np.testing.assert_allclose(scale * expected, known, atol=5e-4)


# The optimum


@pytest.mark.parametrize(
    "adjoint", [gft.objectives.lean_adjoint, gft.objectives.full_adjoint], ids=["lean", "full"]
)
def test_the_best_control_is_the_fixed_point_of_either_adjoint(x64, adjoint):
    """Linear-quadratic control with a base of N(0, s^2): the loss of every row is zero there and nowhere near."""
    base = normal_base(40, 0.6)
    method = adjoint_matching(by_step(40), POINT, cost_weight=LAM, num_steps=40, adjoint=adjoint)
    batch = noise(8, dim=1)
    loss, stats = mean_loss(method, best_control(base), base, batch)
    assert loss < 1e-20 < 1e-2 < stats["squared_control"]
    assert mean_loss(method, best_control(base, lam=1.05 * LAM), base, batch)[0] > 1e-4  # power


def test_its_law_is_narrower_than_the_tilted_one():
    """Mean ``m q / (1 + q)`` and spread ``s / (1 + q)``, ``q = kappa G / lam``, ``G = pi s / 2``, up to O(h)."""
    spread = 0.6
    ratio = KAPPA * np.pi * spread / 2 / LAM
    errors = []
    for num_steps in (200, 400):
        best = best_control(normal_base(num_steps, spread))
        slope, mean = 1.0, 0.0
        for s, b in zip(best["slope"], best["offset"], strict=True):
            slope, mean = slope * (1 + s / num_steps), mean + (s * mean + b) / num_steps
        errors.append([mean - CENTRE * ratio / (1 + ratio), slope - spread / (1 + ratio)])
    first, second = np.abs(errors)
    assert np.all(second < [5e-3, 5e-3])
    assert np.all((first / second > 1.7) & (first / second < 2.3))
    tilted = (1 / (1 / spread**2 + KAPPA / LAM)) ** 0.5
    assert tilted > 1.5 * spread / (1 + ratio)  # power: that law is far away


@pytest.mark.parametrize(
    ("cost", "slope"),
    [
        (gft.control_costs.norm_power(3.0), lambda s: s**2),
        (gft.control_costs.coordinate_power(1.5), lambda s: s**0.5),
        (gft.control_costs.polynomial({2: 0.5, 4: 2.0}), lambda s: 0.5 * s + 2 * s**3),
    ],
    ids=["norm power", "coordinate power", "polynomial"],
)
def test_other_costs_have_their_own_optimum(x64, cost, slope):
    """With no base velocity the best control of a row is constant: ``lam c'(u) = kappa (m - x0 - u)``."""
    batch = noise(5, dim=1)

    def best(x0):
        return optimize.brentq(lambda u: LAM * slope(u) - KAPPA * (CENTRE - x0 - u), 0.0, CENTRE - x0)

    controls = jnp.array([[best(float(x0))] for x0 in batch.x0[:, 0]])
    batch = batch._replace(cond=controls)
    method = adjoint_matching(
        lambda params, t, x, cond=None: params * cond, POINT, cost_weight=LAM, cost=cost, num_steps=6
    )
    assert mean_loss(method, 1.0, 0.0, batch)[0] < 1e-18
    assert mean_loss(method, 1.01, 0.0, batch)[0] > 1e-5  # power


@pytest.mark.slow
def test_training_reaches_the_best_law():
    """Mean ``kappa m / (lam + kappa)`` and spread ``lam / (lam + kappa)`` from N(0, 1) without a base velocity."""
    num_steps, num_rows = 20, 512
    drift, base = by_step(num_steps), {"slope": jnp.zeros(num_steps), "offset": jnp.zeros(num_steps)}
    method = adjoint_matching(drift, POINT, cost_weight=LAM, num_steps=num_steps)
    schedule = optax.cosine_decay_schedule(0.1, 3000)
    runner = gft.parallel.single_device(gft.finetuner(method, optax.adam(schedule), averaging=None))
    state = runner.init(jax.random.key(0), base)

    @jax.jit
    def batch(step):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), num_rows)
        return gft.Batch(jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys), None, keys)

    state, _ = runner.step_many(state, base, jax.vmap(batch)(jnp.arange(3000)))
    slope, mean = 1.0, 0.0
    for s, b in zip(state.params["slope"], state.params["offset"], strict=True):
        slope, mean = slope * (1 + s / num_steps), mean + (s * mean + b) / num_steps
    assert mean == pytest.approx(KAPPA * CENTRE / (LAM + KAPPA), abs=0.02)
    assert slope == pytest.approx(LAM / (LAM + KAPPA), abs=0.02)
    assert abs(slope - (LAM / (LAM + KAPPA)) ** 0.5) > 0.2  # power: not the tilted law
