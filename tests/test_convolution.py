"""The convolution beside JAX's own: values, derivatives of both modes and orders, and the layouts of its gradient."""

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gft_jax.networks import conv_general_dilated
from gft_jax.networks.convolution import forward_mode

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
ROWS = [
    # space, kernel, arguments
    ((4, 6), (3, 3), {"window_strides": (1, 1), "padding": [(1, 1), (1, 1)]}),
    ((4, 6), (3, 3), {"window_strides": (2, 2), "padding": [(1, 1), (1, 1)]}),
    ((5, 4), (3, 2), {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)}),
    ((5, 7), (3, 3), {"window_strides": (2, 3), "padding": "VALID"}),
    ((3, 4), (3, 3), {"window_strides": (1, 1), "padding": [(2, 1), (0, 3)], "lhs_dilation": (2, 1)}),
    ((6,), (4,), {"window_strides": (2,), "padding": "SAME"}),
    ((3, 2, 4), (2, 1, 3), {"window_strides": (1, 1, 2), "padding": "SAME"}),
    # Images smaller than the window.
    ((2, 2), (3, 3), {"window_strides": (1, 1), "padding": "SAME"}),
    ((2, 5), (3, 2), {"window_strides": (1, 2), "padding": [(2, 1), (0, 3)], "rhs_dilation": (1, 2)}),
    ((1,), (3,), {"window_strides": (2,), "padding": [(4, 3)]}),
    ((2, 3, 1), (3, 1, 2), {"window_strides": (1, 2, 1), "padding": [(1, 1), (0, 0), (2, 2)]}),
]


def arrays(space, kernel, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    shapes = [(3, *space, 2), (*kernel, 2, 5)] * 2
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def found(convolve, x, kernel, x_dot, kernel_dot):
    """Value, derivatives along tangents, gradients, second derivatives, and rows one by one."""

    def total(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    value, along = jax.jvp(convolve, (x, kernel), (x_dot, kernel_dot))
    gradient = jax.grad(total, (0, 1))
    _, second = jax.jvp(gradient, (x, kernel), (x_dot, kernel_dot))
    by_row = jax.vmap(lambda row: convolve(row[None], kernel)[0])(x)
    return value, along, gradient(x, kernel), second, by_row


@pytest.mark.parametrize("row", ROWS)
def test_values_and_derivatives_are_those_of_jax(x64, row):
    space, kernel, arguments = row
    layouts = LAYOUTS[len(space)]

    @jax.jit
    def both(*given):
        return [
            found(lambda x, w, f=f: f(x, w, dimension_numbers=layouts, **arguments), *given)
            for f in (conv_general_dilated, lax.conv_general_dilated)
        ]

    ours, theirs = both(*arrays(space, kernel))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def layouts_of(jaxpr):
    """Layouts of all convolutions of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.params["dimension_numbers"]
        for part in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr),
        ):
            if isinstance(part, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                yield from layouts_of(getattr(part, "jaxpr", part))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have JAX's own gradient")
def test_all_convolutions_of_a_gradient_in_a_loop_have_the_fast_layout():
    x, kernel, *_ = arrays((4, 4), (3, 3), jnp.float32)
    fast = lax.conv_dimension_numbers(x.shape, kernel.shape, LAYOUTS[2])

    def trained(convolve):
        def loss(x, kernel):
            return jnp.sum(nn.silu(convolve(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[2])))

        def step(carry, _):
            gradients = jax.grad(loss, (0, 1))(*carry)
            return tuple(a - b for a, b in zip(carry, gradients, strict=True)), None

        return jax.make_jaxpr(lambda *start: lax.scan(step, start, None, length=2))(x, kernel)

    ours = list(layouts_of(trained(conv_general_dilated).jaxpr))
    theirs = list(layouts_of(trained(lax.conv_general_dilated).jaxpr))
    assert len(ours) == len(theirs) == 3
    assert [layouts == fast for layouts in ours] == [True] * 3
    assert [layouts == fast for layouts in theirs] == [True, False, False]  # power


def test_all_convolutions_of_a_tangent_have_the_fast_layout_in_forward_mode():
    x, kernel, *_ = arrays((4, 4), (3, 3), jnp.float32)
    fast = lax.conv_dimension_numbers(x.shape, kernel.shape, LAYOUTS[2])

    def tangent(x):
        def f(x):
            return conv_general_dilated(nn.silu(x), kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[2])

        return jax.jvp(f, (x,), (x,))

    without = list(layouts_of(jax.make_jaxpr(tangent)(x).jaxpr))
    with forward_mode():
        within = list(layouts_of(jax.make_jaxpr(tangent)(x).jaxpr))
    assert [layouts == fast for layouts in within] == [True, True]
    if jax.default_backend() == "cpu":  # power; and no convolution for the kernel, which is constant
        assert sorted(layouts == fast for layouts in without) == [False, True]


def test_other_layouts_and_groups_are_left_to_jax():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 6)), jnp.float32)
    rows = [
        ((x, jnp.ones((3, 3, 3, 4))), {"dimension_numbers": LAYOUTS[2], "feature_group_count": 2}),
        ((jnp.moveaxis(x, 3, 1), jnp.ones((5, 6, 3, 3))), {}),
    ]
    for given, options in rows:
        ours, theirs = (
            f(*given, (1, 1), "SAME", **options) for f in (conv_general_dilated, lax.conv_general_dilated)
        )
        np.testing.assert_array_equal(ours, theirs)
