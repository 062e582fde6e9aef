"""Costs of the control: each is compared with a numerical maximiser, and its three functions with each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from gft_jax.control_costs import coordinate_power, norm_power, polynomial, quadratic

MIXED = {1.5: 0.7, 2: 0.4, 4: 1.3}
LAM = 0.7
PULLS = np.array([[0.8, -0.5, 0.3], [0.0, 0.0, -1.1], [1.2, 0.9, -1.4], [0.05, 0.1, -0.1]])


def of_norm(p):
    return lambda u: np.linalg.norm(u) ** p / p


def of_entries(p):
    return lambda u: np.sum(np.abs(u) ** p) / p


COSTS = {
    "quadratic": (quadratic(), of_norm(2)),
    **{f"norm {p}": (norm_power(p), of_norm(p)) for p in (1.1, 1.5, 3, 4)},
    **{f"coordinate {p}": (coordinate_power(p), of_entries(p)) for p in (1.1, 1.5, 3, 4)},
    "polynomial": (polynomial(MIXED), lambda u: sum(c * of_norm(p)(u) for p, c in MIXED.items())),
}


@jax.jit
def of_all(x):
    """Cost, slope and control of every cost, by name."""
    return {name: (cost.cost(x), cost.slope(x), cost.control(x)) for name, (cost, _) in COSTS.items()}


def test_the_control_is_the_maximiser(x64):
    """Of ``<a, u> - lam c(u)``, found without derivatives; a control that is a little longer or turned is not."""
    options = {"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000, "maxfev": 4000}
    for name, (values, _, control) in jax.device_get(of_all(jnp.asarray(PULLS / LAM))).items():
        formula = COSTS[name][1]
        np.testing.assert_allclose(values, [formula(pull / LAM) for pull in PULLS], rtol=1e-12)
        for pull, found in zip(PULLS, control, strict=True):

            def loss(u, pull=pull, formula=formula):
                return LAM * formula(u) - pull @ u

            best = minimize(loss, 0.8 * found + 0.1, method="Nelder-Mead", options=options)
            size = np.linalg.norm(found)
            # A fourth power tells nothing about entries below the fourth root of the rounding.
            np.testing.assert_allclose(found, best.x, atol=2e-4 * (1 + size), err_msg=name)
            assert loss(found) <= best.fun + 1e-12 * abs(best.fun), name
            for wrong in (found * 1.05, found + 0.05 * size * np.array([0.5, -0.7, 0.5])):  # power
                assert loss(wrong) > loss(found) + 1e-6 * abs(loss(found)), name


def test_the_slope_is_the_gradient_of_the_cost_and_the_inverse_of_the_control(x64):
    @jax.jit
    def round_trips(x):
        return {
            name: (
                cost.slope(x),
                jax.grad(lambda x, cost=cost: jnp.sum(cost.cost(x)))(x),
                cost.slope(cost.control(x)),
                cost.control(cost.slope(x)),
            )
            for name, (cost, _) in COSTS.items()
        }

    found = jax.device_get(round_trips(jnp.asarray(PULLS)))
    for name, (slope, gradient, there, back) in found.items():
        np.testing.assert_allclose(slope, gradient, rtol=1e-10, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(there, PULLS, rtol=1e-9, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(back, PULLS, rtol=1e-9, atol=1e-13, err_msg=name)


def test_at_zero_all_is_zero_and_the_derivatives_are_those_of_the_formula_or_zero():
    """A control starts at zero; a cost that is differentiated there must not give nan."""
    # With the derivative of the slope, up to a unit matrix; at powers below two it is infinite, and left out.
    costs = {
        "quadratic": (quadratic(), 1),
        **{f"norm {p}": (norm_power(p), p == 2) for p in (1.5, 2, 3)},
        **{f"coordinate {p}": (coordinate_power(p), p == 2) for p in (1.5, 2, 3)},
        "polynomial": (polynomial(MIXED), MIXED[2]),
        "polynomial of high powers": (polynomial({3: 1.0, 4: 0.5}), 0),
    }

    @jax.jit
    def derivatives(row):
        functions = {name: (cost.cost, cost.slope, cost.control) for name, (cost, _) in costs.items()}
        at_row = jax.tree.map(lambda f: f(row[None])[0], functions)
        return at_row, jax.tree.map(lambda f: jax.jacobian(lambda row: f(row[None])[0])(row), functions)

    values, found = jax.device_get(derivatives(jnp.zeros(3)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(values))
    for name, (of_cost, of_slope, of_control) in found.items():
        np.testing.assert_array_equal(of_cost, np.zeros(3), err_msg=name)
        np.testing.assert_array_equal(of_slope, np.float32(costs[name][1]) * np.eye(3), err_msg=name)
        assert np.isfinite(of_control).all(), name
    beside = jax.device_get(derivatives(jnp.array([0.3, 0.0, 0.0])))  # a zero among others
    for leaf in jax.tree.leaves(beside):
        assert np.isfinite(leaf).all()


def test_magnitudes_whose_squares_leave_float32():
    """Wherever the result fits into float32 it is found, against float64; where it does not, it is inf or 0."""
    sizes, direction = np.logspace(-20, 20, 21)[:, None], np.array([0.48, 0.6, -0.64])
    found = jax.device_get(of_all(jnp.asarray(sizes * direction, jnp.float32)))
    num_compared = 0
    for name, (_, *both) in found.items():
        kind, p = (*name.split(), 2)[:2]
        if kind == "polynomial":
            continue
        for ours, power in zip(both, (float(p) - 1, 1 / (float(p) - 1)), strict=True):
            with np.errstate(over="ignore"):
                if kind == "coordinate":
                    expected = np.sign(direction) * (sizes * np.abs(direction)) ** power
                else:
                    expected = direction * sizes**power
            fits = (np.abs(expected) > 1e-37) & (np.abs(expected) < 3e38)
            np.testing.assert_allclose(ours[fits], expected[fits], rtol=2e-4, err_msg=name)
            assert np.isinf(ours[np.abs(expected) > 4e38]).all(), name
            assert (np.abs(ours[np.abs(expected) < 1e-37]) <= 1.01e-37).all(), name
            num_compared += fits.sum()
    assert num_compared > 400


def test_the_root_of_a_polynomial_at_all_sizes(x64):
    """Also where the powers are far apart."""
    sizes = np.logspace(-20, 20, 81)
    all_coefficients = (MIXED, {1.1: 1.0, 4: 1.0}, {1.08: 1e-3, 1.5: 1e3, 10: 1e-6}, {3: 2.0})
    controls = [polynomial(coefficients).control for coefficients in all_coefficients]
    lengths = jax.device_get(jax.jit(lambda x: [control(x) for control in controls])(jnp.asarray(sizes)))
    for coefficients, length in zip(all_coefficients, lengths, strict=True):

        def residual(length, coefficients=coefficients):
            return np.abs(sum(c * length ** (p - 1) for p, c in coefficients.items()) / sizes - 1)

        assert residual(length).max() < 1e-9, coefficients
        assert residual(1.001 * length).min() > 5e-6  # power


def test_power_two_is_the_quadratic_cost():
    x = jnp.asarray(PULLS, jnp.float32)
    same = [norm_power(2), norm_power(2.0), coordinate_power(2), polynomial({2: 1.0})]
    first, *others, other_power = jax.device_get(
        jax.jit(
            lambda x: [
                (cost.cost(x), cost.slope(x), cost.control(x))
                for cost in (quadratic(), *same, norm_power(2.1))
            ]
        )(x)
    )
    for other in others:
        for ours, theirs in zip(other, first, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    for ours, theirs in zip(other_power, first, strict=True):  # power
        assert not np.allclose(ours, theirs, rtol=1e-2)


def test_events_of_any_rank_and_rows_by_themselves():
    """The norm is over the whole event, and no row sees another."""
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)

    @jax.jit
    def arrangements(x):
        return (
            of_all(x),
            of_all(x.reshape(4, 3, 2)),
            of_all(jnp.flip(x, 0)),
            of_all(x[:, 0]),
            of_all(x[:, :1]),
        )

    vectors, matrices, flipped, scalars, singles = jax.device_get(arrangements(jnp.asarray(x)))
    for name, expected in vectors.items():
        for found, value in zip(matrices[name][1:], expected[1:], strict=True):
            assert found.shape == (4, 3, 2)
            np.testing.assert_allclose(found.reshape(4, 6), value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(matrices[name][0], expected[0], rtol=1e-6)
        for found, value in zip(flipped[name], expected, strict=True):
            np.testing.assert_allclose(found[::-1], value, rtol=1e-6, err_msg=name)
        for found, value in zip(scalars[name], singles[name], strict=True):
            assert found.shape == (4,)
            np.testing.assert_allclose(found, value.reshape(4), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("p", [1, 0.5, -2.0, float("inf"), float("nan")])
def test_wrong_powers_are_refused(p):
    for make in (norm_power, coordinate_power, lambda p: polynomial({2: 1.0, p: 1.0})):
        with pytest.raises(ValueError, match=f"above 1 and finite, got {p}"):
            make(p)


@pytest.mark.parametrize("coefficient", [0.0, -1, float("inf"), float("nan")])
def test_wrong_coefficients_are_refused(coefficient):
    with pytest.raises(ValueError, match=f"coefficient of power 3 .* got {coefficient}"):
        polynomial({3: coefficient})
    with pytest.raises(ValueError, match="one or more powers"):
        polynomial({})


def test_coefficients_that_are_no_dictionary_are_refused(without_hook):
    with pytest.raises(ValueError, match=r"needs a dictionary of .*, got \[\(2, 1.0\)\]"):
        polynomial([(2, 1.0)])
