"""The contract that every coupling keeps: one table of couplings, one table of bad input."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ends import brute_cost, largest_z, two_ends

from gft_jax.couplings import (
    MAX_ROWS,
    apply,
    exact,
    independent,
    matching_conditions,
    matching_labels,
    one_to_one,
    respecting_conditions,
    respecting_labels,
    seen_through,
    sinkhorn,
    unbalanced,
)

KEY = jax.random.key(7)
LABELS = np.arange(12) % 3
NUMBERS = np.linspace(0, 1, 12, dtype=np.float32)


class Row(NamedTuple):
    make: Any
    conds: tuple = (None, None)
    permutation: bool = True
    random: bool = True
    weighted: bool = False


COUPLINGS = {  # made when used, since ott takes seconds to import
    "independent": Row(independent),
    "exact": Row(exact, random=False),
    "sinkhorn": Row(sinkhorn, permutation=False),
    "one-to-one": Row(lambda: sinkhorn(rounding=one_to_one)),
    "unbalanced": Row(unbalanced, permutation=False, weighted=True),
    "respecting labels": Row(lambda: respecting_labels(exact()), (LABELS, None)),
    "respecting labels of x0": Row(lambda: respecting_labels(exact()), (None, {"mode": LABELS})),
    "seen through a map": Row(lambda: seen_through(exact(), lambda x: 1 - x**3), random=False),
    "respecting conditions": Row(lambda: respecting_conditions(exact(), weight=1.0), (NUMBERS, None)),
    "matching labels": Row(lambda: matching_labels(exact()), (LABELS, np.flip(LABELS)), random=False),
    "matching conditions": Row(
        lambda: matching_conditions(unbalanced(), weight=1.0),
        (NUMBERS, -NUMBERS),
        permutation=False,
        weighted=True,
    ),
}
every_coupling = pytest.mark.parametrize("name", COUPLINGS)


@functools.cache
def made(name):
    return COUPLINGS[name].make()


def with_conds(name):
    return lambda key, x0, x1: made(name)(key, x0, x1, *COUPLINGS[name].conds)


def assert_same(a, b):
    """The same pairs; numbers up to the rounding of two programs."""
    for field, ours, theirs in zip(a._fields, a, b, strict=True):
        if ours is not None and ours.dtype == jnp.float32:
            # An error is what is left of masses that cancel, a few units in the last place of their sum, which is 1.
            last = 1e-5 if field == "marginal_error" else 1e-6
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=last, err_msg=field)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=field)


@every_coupling
def test_contract(name):
    row, coupling = COUPLINGS[name], with_conds(name)
    x0, x1 = (jnp.asarray(x) for x in two_ends())
    pairing = coupling(KEY, x0, x1)
    jax.tree.map(np.testing.assert_array_equal, pairing, coupling(KEY, x0, x1))
    other = coupling(jax.random.key(8), x0, x1)
    assert (pairing.source_index != other.source_index).any() == row.random
    assert pairing.source_index.dtype == pairing.target_index.dtype == jnp.int32
    np.testing.assert_array_equal(pairing.target_index, np.arange(12))
    scalars = pairing.cost, pairing.marginal_error, pairing.entropy
    assert all(x.dtype == jnp.float32 and x.shape == () for x in scalars)
    assert pairing.converged
    assert pairing.marginal_error < 3e-3
    assert 0 <= pairing.entropy <= np.log(12) + 1e-5
    if row.permutation:
        np.testing.assert_array_equal(np.sort(pairing.source_index), np.arange(12))
        assert pairing.marginal_error == 0
        pairs = brute_cost(x0, x1)[pairing.source_index, pairing.target_index]
        np.testing.assert_allclose(pairing.cost, pairs.mean(), rtol=1e-5)
    if row.weighted:
        assert (pairing.weight >= 0).all()
        np.testing.assert_allclose(pairing.weight.mean(), 1, rtol=1e-5)
    else:
        assert pairing.weight is None
    # The rank of the event does not matter, nor whether the rows are numpy's.
    for event in ((6,), (1, 2, 3)):
        reshaped = coupling(KEY, x0.reshape(12, *event), np.asarray(x1).reshape(12, *event))
        np.testing.assert_array_equal(reshaped.source_index, pairing.source_index)

    # The pairing is a constant for autodiff, here the gradient of sum_k x0[s(k)]^2 with s held fixed; and it is the
    # same under jit.
    def loss(x):
        inside = coupling(KEY, x, x1)
        weight = 1 if inside.weight is None else inside.weight.mean()
        return jnp.sum(x[inside.source_index] ** 2) * weight + inside.cost + inside.entropy, inside

    gradient, inside = jax.jit(jax.grad(loss, has_aux=True))(x0)
    assert_same(inside, pairing)
    uses = np.bincount(pairing.source_index, minlength=12)
    np.testing.assert_allclose(gradient, 2 * uses[:, None, None] * x0, rtol=1e-5)


@every_coupling
def test_whole_rows_move_with_their_conditions(name):
    x0, x1 = two_ends()
    number = np.arange(12)
    cond = {"number": number, "image": (x1, None), "key": jax.random.split(KEY, 12)}
    source_cond = (2 * x0, number)
    pairing = with_conds(name)(KEY, x0, x1)
    source_index = pairing.source_index
    y0, y1, moved, moved_source = apply(pairing, x0, x1, cond, source_cond)
    assert (source_index != np.arange(12)).any()
    np.testing.assert_array_equal(y0, np.asarray(x0)[source_index])
    np.testing.assert_array_equal(y1, x1)
    np.testing.assert_array_equal(moved["number"], number)
    np.testing.assert_array_equal(moved["image"][0], y1)
    assert moved["image"][1] is None
    np.testing.assert_array_equal(jax.random.key_data(moved["key"]), jax.random.key_data(cond["key"]))
    np.testing.assert_array_equal(moved_source[0], 2 * y0)
    np.testing.assert_array_equal(moved_source[1], source_index)


@pytest.mark.parametrize("name", ["independent", "one-to-one", "respecting labels of x0"])
def test_batched_by_vmap_equals_one_by_one(name):
    coupling = with_conds(name)
    keys = jax.random.split(KEY, 3)
    batches = [two_ends(seed=seed) for seed in range(3)]
    x0, x1 = (jnp.stack(x) for x in zip(*batches, strict=True))
    together = jax.jit(jax.vmap(coupling))(keys, x0, x1)
    for i, (a, b) in enumerate(batches):
        alone = coupling(keys[i], a, b)
        np.testing.assert_array_equal(together.source_index[i], alone.source_index)
        np.testing.assert_allclose(together.cost[i], alone.cost, rtol=1e-5)


@pytest.mark.parametrize("name", ["independent", "one-to-one", "respecting labels", "matching conditions"])
def test_double_precision_is_kept(name, x64):
    x0, x1 = two_ends(dtype=np.float64)
    with jax.numpy_rank_promotion("raise"):  # a user's strictest setting
        pairing = jax.eval_shape(with_conds(name), KEY, x0, x1)
    assert pairing.cost.dtype == pairing.marginal_error.dtype == pairing.entropy.dtype == jnp.float64
    assert pairing.source_index.dtype == pairing.target_index.dtype == jnp.int32


def products(jaxpr):
    """Precisions of all matrix products of a program, and of those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("name", [name for name in COUPLINGS if name != "independent"])
def test_costs_have_full_precision_whatever_the_default(name):
    x0, x1 = two_ends()
    with jax.default_matmul_precision("bfloat16"):
        found = list(products(jax.make_jaxpr(with_conds(name))(KEY, x0, x1).jaxpr))
    assert found
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_apply_also_moves_x1_where_a_coupling_chooses_it():
    x0, x1 = two_ends()
    chosen = jnp.array([3, 3, 0], jnp.int32)
    pairing = independent()(KEY, x0, x1)._replace(source_index=chosen[::-1], target_index=chosen)
    y0, y1, cond, source_cond = apply(pairing, x0, x1, jnp.arange(12), None)
    np.testing.assert_array_equal(y0, np.asarray(x0)[[0, 3, 3]])
    np.testing.assert_array_equal(y1, np.asarray(x1)[[3, 3, 0]])
    np.testing.assert_array_equal(cond, [3, 3, 0])
    assert source_cond is None


def test_independent_breaks_an_alignment_uniformly():
    """Each source falls on each target with probability 1/rows: a z-score per cell, over many keys."""
    rows, num_keys = 5, 4000
    x = jnp.arange(float(rows))
    draw = jax.jit(jax.vmap(lambda key: independent()(key, x, x).source_index))
    index = np.asarray(draw(jax.random.split(KEY, num_keys)))
    uniform = np.full((rows, rows), 1 / rows)
    assert largest_z(index, uniform) < 4
    lazy = np.where(np.arange(num_keys)[:, None] % 10 == 0, np.arange(rows), index)  # one in ten left aligned
    assert largest_z(lazy, uniform) > 6


@every_coupling
def test_wrong_shapes_are_named(name):
    coupling = with_conds(name)
    for shape0, shape1 in (((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4, 1)), ((), ()), ((0, 2), (0, 2))):
        with pytest.raises(ValueError, match=r"same shape") as error:
            jax.eval_shape(coupling, KEY, jnp.zeros(shape0), jnp.zeros(shape1))
        assert f"x0 {shape0} and x1 {shape1}" in str(error.value)


@pytest.mark.parametrize("make", [exact, sinkhorn, unbalanced, lambda: respecting_labels(exact())])
def test_too_many_rows_for_a_matrix_of_costs_are_refused_before_memory_is_taken(make):
    rows = MAX_ROWS + 1
    end, label = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.float32, jnp.int32))
    with pytest.raises(ValueError, match=r"16385 rows: .* 1.0 GiB.*At most 16384 .*smaller batch_size"):
        jax.eval_shape(make(), KEY, end, end, label)
    assert jax.eval_shape(independent(), KEY, end, end).source_index.shape == (rows,)


def test_conditions_of_another_length_are_refused():
    x0, x1 = two_ends()
    pairing = independent()(KEY, x0, x1)
    with pytest.raises(
        ValueError, match=r"cond\['a'\].*each row of x1, got shape \(11,\) for x1 of shape \(12,"
    ):
        apply(pairing, x0, x1, {"a": jnp.zeros(11)})
    with pytest.raises(ValueError, match=r"source_cond must .*row of x0, got shape \(\)"):
        apply(pairing, x0, x1, None, 1.0)


def test_ends_that_are_not_finite():
    x0, x1 = (jnp.asarray(x) for x in two_ends())
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
    for name in ("sinkhorn", "one-to-one", "unbalanced"):
        # finite, but the mean distance overflows
        assert not made(name)(KEY, x0 * 1e18, x1).converged
        entropic = made(name)(KEY, bad, x1)
        assert not entropic.converged
        assert ((entropic.source_index >= 0) & (entropic.source_index < 12)).all()
