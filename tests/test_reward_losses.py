"""Loss, gradient and stats of every method that raises a reward, against its formula written out in NumPy."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reward_formulas as formulas
from reward_formulas import (
    COND,
    GRID,
    LARGEST_EXPONENT,
    LATE,
    MEAN,
    SHARPNESS,
    TEMPERATURE,
    THRESHOLD,
    WEIGHT,
    X0,
    X1,
    base_drift,
    reward,
    strength,
)
from reward_toy import AWAY, BASE, LAM, network, random_params

import gft_jax as gft
from gft_jax.pairing import row_keys

methods = gft.objectives

BOUND = {"cost_weight": LAM, "base_drift": base_drift}
CASES = {
    formulas.adjoint_matching_by_euler: lambda: methods.adjoint_matching(
        network, reward, times=GRID, truncation=3, **BOUND
    ),
    formulas.adjoint_matching_by_heun: lambda: methods.adjoint_matching(
        network, reward, times=GRID, truncation=2, solver=diffrax.Heun(), **BOUND
    ),
    formulas.memoryless_on_the_linear_path: lambda: methods.memoryless_adjoint_matching(
        network, reward, times=LATE, **BOUND
    ),
    formulas.memoryless_on_the_trigonometric_path: lambda: methods.memoryless_adjoint_matching(
        network,
        reward,
        times=LATE,
        path=gft.paths.trigonometric(),
        truncation=2,
        clip=methods.QuantileClip(),
        **BOUND,
    ),
    formulas.draft: lambda: methods.draft(network, reward, times=GRID, truncation=2, **BOUND),
    formulas.refl: lambda: methods.refl(network, reward, times=GRID, truncation=3),
    formulas.value_guidance: lambda: methods.value_guidance(
        network, reward, times=GRID, strength=strength, **BOUND
    ),
    formulas.reward_weighted: lambda: methods.reward_weighted(
        network, reward, sharpness=SHARPNESS, base_weight=0.3, times=GRID, max_exponent=LARGEST_EXPONENT
    ),
    formulas.terminal: lambda: methods.terminal(
        network, lambda x: x[:, 0] - jnp.sum(x**2, axis=1) / 5, weighting=strength
    ),
}
STATES = {
    formulas.memoryless_on_the_trigonometric_path: lambda: jnp.asarray(THRESHOLD),
    formulas.reward_weighted: lambda: {"mean": jnp.asarray(MEAN), "known": jnp.ones(())},
}


def batch():
    cond, weight = jnp.asarray(COND), jnp.asarray(WEIGHT)
    return gft.Batch(jnp.asarray(X0), jnp.asarray(X1), row_keys(0, 0, 5), cond, weight=weight)


@jax.jit(static_argnums=0)
def evaluated(method, params, base_params, state, batch):
    """Prepared rows, and the terms of their loss with the gradient of its weighted sum."""
    beta = jnp.asarray(TEMPERATURE)
    rows = method.prepare(params, base_params, state, batch, beta)

    def total(params):
        terms = method.loss(params, base_params, rows, beta)
        return jnp.sum(terms.weight * terms.loss), terms

    return rows, *jax.grad(total, has_aux=True)(params)


@pytest.mark.parametrize("by_hand", CASES, ids=lambda by_hand: by_hand.__name__)
def test_loss_gradient_and_stats_are_those_of_the_formula(x64, by_hand):
    # Arguments: JAX remembers the precision of an array that a program has as its constant, beyond this test.
    params = jax.tree.map(jnp.asarray, (AWAY, BASE))
    rows, gradient, terms = evaluated(CASES[by_hand](), *params, STATES.get(by_hand, tuple)(), batch())
    expected = by_hand(AWAY, rows)
    weight = WEIGHT * expected.get("ratio_weight", 1.0)  # of the terminal objective
    np.testing.assert_allclose(terms.weight, weight, rtol=1e-9)
    for name, values in expected.items():
        found = terms.loss if name == "loss" else terms.stats[name]
        np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=name)
    along, step = random_params(2, 1.0), 1e-5

    def moved(by):
        params = {name: leaf + by * along[name] for name, leaf in AWAY.items()}
        return np.sum(weight * by_hand(params, rows)["loss"])

    slope = sum(np.sum(gradient[name] * along[name]) for name in along)
    np.testing.assert_allclose(slope, (moved(step) - moved(-step)) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("by_hand", CASES, ids=lambda by_hand: by_hand.__name__)
def test_noise_in_half_precision_gives_rows_in_float32(by_hand):
    half = batch()._replace(x0=jnp.asarray(X0, jnp.bfloat16), x1=jnp.asarray(X1, jnp.bfloat16))
    params, base = jax.tree.map(jnp.float32, (AWAY, BASE))
    state = STATES.get(by_hand, tuple)()
    rows = jax.eval_shape(CASES[by_hand]().prepare, params, base, state, half, jnp.zeros(()))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(rows)}
    assert jnp.dtype("float32") in dtypes
    assert jnp.dtype("bfloat16") not in dtypes
