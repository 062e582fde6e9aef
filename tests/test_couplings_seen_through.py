"""Couplings of sources as a map shows them: against the assignment of the mapped points, computed here."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ends import brute_cost, two_classes, two_ends

from gft_jax.couplings import exact, independent, respecting_labels, seen_through, sinkhorn, unbalanced
from gft_jax.drifts import as_score
from gft_jax.paths import linear
from gft_jax.sampling import flow_map

KEY = jax.random.key(7)
SPEED = np.array([[0.5, -2.0], [2.0, 0.5]], np.float32)


def turning(params, t, x, cond=None):
    return x @ params["speed"].T + params["shift"]


PARAMS = {"speed": jnp.asarray(SPEED), "shift": jnp.array([1.0, 0.0])}


def turned(x, num_steps):
    """Euler's steps of the linear drift, one matrix each, in float64."""
    step = np.eye(2) + SPEED / num_steps
    for _ in range(num_steps):
        x = x @ step.T + np.array([1.0, 0.0]) / num_steps
    return x


def assigned(cost):
    """Row of x0 for each row of x1, at the least total cost ``[x0, x1]``."""
    return scipy.optimize.linear_sum_assignment(cost.T)[1]


def test_pairs_are_optimal_between_the_images_of_a_known_flow_and_the_data():
    x0, x1 = two_ends(rows=40, event=(2,))
    flow = flow_map(turning, PARAMS, num_steps=3)
    np.testing.assert_allclose(flow(jnp.asarray(x0)), turned(x0, 3), rtol=1e-5, atol=1e-5)
    pairing = seen_through(exact(), flow)(KEY, x0, x1)
    best = assigned(brute_cost(turned(x0, 3), x1))
    np.testing.assert_array_equal(pairing.source_index, best)
    plain = exact()(KEY, x0, x1)
    assert (plain.source_index != best).mean() > 0.5
    pairs = brute_cost(x0, x1)[best, np.arange(40)].mean()  # of the rows that move, and not of their images
    np.testing.assert_allclose(pairing.cost, pairs, rtol=1e-5)
    assert pairs > 1.2 * plain.cost


@pytest.mark.parametrize(
    "inner", [exact(), sinkhorn(), unbalanced()], ids=["exact", "sinkhorn", "unbalanced"]
)
def test_with_the_identity_it_is_the_inner_coupling_and_the_cost_that_of_the_pairs(inner):
    x0, x1 = two_ends()
    plain, pairing = inner(KEY, x0, x1), seen_through(inner, lambda x: x)(KEY, x0, x1)
    for field in ("source_index", "target_index", "weight", "marginal_error", "entropy", "converged"):
        jax.tree.map(np.testing.assert_array_equal, getattr(plain, field), getattr(pairing, field))
    weight = np.ones(12) if plain.weight is None else np.asarray(plain.weight)
    squared = brute_cost(x0, x1)[plain.source_index, plain.target_index]
    np.testing.assert_allclose(pairing.cost, np.mean(weight * squared), rtol=1e-5)


def test_it_respects_labels_whichever_wrapper_is_the_outer_one():
    x0, x1, label = two_classes(3)
    images = jnp.sinh(jnp.asarray(x0))
    expected = respecting_labels(exact())(KEY, images, x1, label).source_index
    for coupling in (
        respecting_labels(seen_through(exact(), jnp.sinh)),
        seen_through(respecting_labels(exact()), jnp.sinh),
    ):
        np.testing.assert_array_equal(coupling(KEY, x0, x1, label).source_index, expected)
    assert (seen_through(exact(), jnp.sinh)(KEY, x0, x1).source_index != expected).any()


def test_parameters_of_the_map_are_arguments_of_the_program():
    x0, x1, label = two_classes(3)
    flow = jax.tree_util.Partial(lambda weight, x: jnp.sin(x[:, None] * weight).sum(axis=1), jnp.arange(50.0))

    def largest_constant(coupling):
        arrays, static = eqx.partition(coupling, eqx.is_array)
        program = jax.make_jaxpr(lambda arrays, x0, x1: eqx.combine(arrays, static)(KEY, x0, x1, label))
        return max((np.size(constant) for constant in program(arrays, x0, x1).consts), default=0)

    inner = seen_through(sinkhorn(), flow)
    assert [leaf.shape for leaf in jax.tree.leaves(eqx.filter(inner, eqx.is_array))] == [(50,)]
    assert largest_constant(inner) <= 1
    assert largest_constant(respecting_labels(inner)) <= len(label)  # the labels
    assert largest_constant(seen_through(sinkhorn(), lambda x: flow(x))) == 50


def test_bad_inner_couplings_maps_and_steps_are_named():
    x0, x1 = two_ends()
    with pytest.raises(ValueError, match=r"inner coupling must take a penalty, as exact.*got independent"):
        seen_through(independent(), jnp.sinh)
    with pytest.raises(
        ValueError, match=r"source_map must keep the shape.*got \(12, 2\) for x0 of shape \(12, 2, 3\)"
    ):
        seen_through(exact(), lambda x: x[..., 0])(KEY, x0, x1)
    assert not jax.jit(seen_through(exact(), jnp.log))(KEY, x0, x1).converged  # negative numbers have none
    with pytest.raises(ValueError, match=r"num_steps must be >= 1, got 0"):
        flow_map(turning, PARAMS, num_steps=0)


def test_a_message_names_the_coupling_without_its_arrays():
    coupling = seen_through(exact(), flow_map(turning, PARAMS))
    with pytest.raises(ValueError, match="but the coupling is seen_through: with dependent"):
        as_score(turning, linear(), coupling=coupling)
