import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gft_jax.networks import ResidualMLP

BATCH = 4


def example(event_shape, cond=None, dtype=jnp.float32, **fields):
    """Network, random parameters (the initial last layer is zero and hides everything), t and x."""
    module = ResidualMLP(**{"hidden": 16, "depth": 2, "time_features": 8, **fields})
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH, *event_shape)), dtype)
    t = jnp.linspace(0.1, 0.9, BATCH, dtype=dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), t, x, cond)
    return (
        module,
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), shapes),
        t,
        x,
    )


@pytest.mark.parametrize(
    ("event_shape", "fields", "cond"),
    [
        ((), {}, None),
        ((3,), {"cond_features": 2}, np.arange(8, dtype=np.float32).reshape(BATCH, 2)),
        ((2, 3), {"num_classes": 3}, np.array([0, 1, 2, 3])),
        ((2, 2, 1), {"num_classes": 1, "depth": 1, "hidden": 4, "time_features": 2}, np.array([0, 1, 0, 1])),
    ],
)
def test_rows_depend_on_themselves_alone_and_on_all_their_inputs(event_shape, fields, cond):
    module, params, t, x = example(event_shape, cond, **fields)
    apply = jax.jit(module.apply)
    v = apply(params, t, x, cond)
    assert v.dtype == x.dtype

    order = np.array([2, 0, 3, 1])
    permuted = apply(params, t[order], x[order], None if cond is None else cond[order])
    np.testing.assert_allclose(permuted, v[order], rtol=1e-5, atol=1e-6)

    def changed_rows(t, x, cond):
        return (np.abs(apply(params, t, x, cond) - v).reshape(BATCH, -1).max(axis=1) > 1e-4).tolist()

    only_second = [False, True, False, False]
    assert changed_rows(t, x, cond) == [False] * BATCH
    assert changed_rows(t.at[1].add(0.05), x, cond) == only_second
    assert changed_rows(t, x.at[1].add(0.5), cond) == only_second
    if cond is not None:
        other = cond.copy()
        other[1] -= 1
        assert changed_rows(t, x, other) == only_second


def test_events_are_flattened_in_order():
    module, params, t, x = example((2, 3))
    apply = jax.jit(module.apply)
    flat = apply(params, t, x.reshape(BATCH, 6))
    np.testing.assert_allclose(apply(params, t, x), flat.reshape(x.shape), rtol=1e-6)


def test_the_null_class_is_no_condition_and_labels_out_of_range_show():
    module, params, t, x = example((3,), num_classes=5)  # initialised without a condition
    apply = jax.jit(module.apply)
    without = apply(params, t, x)
    np.testing.assert_array_equal(without, apply(params, t, x, jnp.full(BATCH, 5)))
    np.testing.assert_array_equal(without, apply(params, t, x, jnp.full(BATCH, -1)))
    assert np.abs(without - apply(params, t, x, jnp.full(BATCH, 4))).min() > 1e-4
    beyond = apply(params, t, x, jnp.array([5, 6, 0, 99]))
    np.testing.assert_array_equal(np.isnan(beyond).any(axis=1), [False, True, False, True])


def test_parameters_are_counted_and_the_initial_velocity_is_zero():
    module = ResidualMLP()
    t, x = jnp.linspace(0, 1, BATCH), jnp.ones((BATCH, 8, 8))
    shapes = jax.eval_shape(module.init, jax.random.key(0), t, x)
    dense = [(64, 64), (64, 512), (64, 256), (256, 256), (256, 256), (256, 256), (256, 256), (256, 64)]
    expected = sum(inputs * outputs + outputs for inputs, outputs in dense)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected == 333_696
    small = ResidualMLP(hidden=8, depth=1, num_classes=2)
    velocity, _ = jax.jit(small.init_with_output)(jax.random.key(0), t, x, jnp.arange(BATCH) % 3)
    np.testing.assert_array_equal(velocity, 0)


def test_precision_is_that_of_the_events(x64):
    module, params, t, x = example((3,), dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    apply = jax.jit(module.apply)
    double = apply(params, t, x)
    assert double.dtype == jnp.float64
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        single = apply(params, t.astype(jnp.float32), x.astype(dtype))
        assert single.dtype == dtype
        error = np.abs(single.astype(jnp.float64) - double).max() / np.abs(double).max()
        assert 0 < error < tolerance
    params = example((3,), dtype=jnp.float64, param_dtype=jnp.float64)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")}


def test_derivatives_agree_with_finite_differences(x64):
    cond = np.arange(BATCH)
    module, params, t, x = example((2,), cond, jnp.float64, num_classes=4, param_dtype=jnp.float64)
    direction = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), (params, t, x))

    @jax.jit
    def loss(inputs):
        params, t, x = inputs
        return jnp.sum(module.apply(params, t, x, cond) ** 2)

    @jax.jit
    def slopes(inputs):
        gradient = jax.grad(loss)(inputs)
        backward = sum(
            jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        return backward, jax.jvp(loss, (inputs,), (direction,))[1]

    def along(step):
        return loss(jax.tree.map(lambda a, b: a + step * b, (params, t, x), direction))

    backward, forward = slopes((params, t, x))
    differences = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(backward, differences, rtol=1e-6)
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


def test_a_small_network_learns_the_velocity_between_two_gaussians():
    """Linear path from N(0, 1) to N(3, 0.5^2), independent ends, regressed on its marginal velocity."""
    module = ResidualMLP(hidden=32, depth=2, time_features=16)
    num_steps, batch = 400, 128
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))

    def error(params, key):
        key_t, key_x = jax.random.split(key)
        t = jax.random.uniform(key_t, (batch,))
        variance = t**2 * 0.25 + (1 - t) ** 2
        noise = jax.random.normal(key_x, (batch,))
        x = 3 * t + jnp.sqrt(variance) * noise
        velocity = 3 + (t * 0.25 - (1 - t)) / variance * (x - 3 * t)
        residual = module.apply(params, t, x) - velocity
        return jnp.mean(residual**2), jnp.mean((velocity - 3) ** 2)

    @jax.jit
    def train(key):
        key_init, key_train, key_test = jax.random.split(key, 3)
        params = module.init(key_init, jnp.zeros(1), jnp.zeros(1))

        def step(carry, key):
            params, state = carry
            gradient, _ = jax.grad(error, has_aux=True)(params, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key_train, num_steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return error(params, key_test)

    mean_squared_error, spread = train(jax.random.key(0))
    # The best constant velocity misses by the spread: the network explains all but a few thousandths of it.
    assert mean_squared_error < 3e-3 * spread


def test_construction_names_the_bad_field():
    rows = [
        ({"hidden": 0}, "hidden must be >= 1, got 0"),
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"time_features": 7}, "time_features must be even and >= 2, got 7"),
        ({"time_features": 0}, "time_features must be even and >= 2, got 0"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"cond_features": -1}, "cond_features must be >= 1, got -1"),
        ({"learned_null": True}, "needs num_classes"),
    ]
    for fields, message in rows:
        with pytest.raises(ValueError, match=message):
            ResidualMLP(**fields)


def test_wrong_conditions_and_times_are_named_with_their_shapes():
    t, x = jnp.zeros(BATCH), jnp.zeros((BATCH, 3))
    labels, vectors = {"num_classes": 3}, {"cond_features": 2}
    rows = [
        ({}, t, jnp.zeros(BATCH), "unconditional"),
        (
            labels,
            t,
            jnp.zeros(BATCH),
            r"integer labels of shape \(4,\); got float32 of shape \(4,\)",
        ),
        (labels, t, jnp.zeros((BATCH, 1), int), r"shape \(4,\).*got int32 of shape \(4, 1\)"),
        (labels, t, jnp.zeros(BATCH, bool), "got bool"),
        (vectors, t, None, r"floats of shape \(4, 2\); got None"),
        (vectors, t, jnp.zeros((BATCH, 3)), r"floats of shape \(4, 2\).*got float32 of shape \(4, 3\)"),
        (vectors, t, jnp.zeros((BATCH, 2), int), r"floats of shape \(4, 2\).*got int32"),
        ({}, t[:2], None, r"shape \(4,\) for x of shape \(4, 3\), got shape \(2,\)"),
        ({}, t[0], None, r"shape \(4,\) for x of shape \(4, 3\), got shape \(\)"),
    ]
    for fields, times, cond, message in rows:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(ResidualMLP(**fields).init, jax.random.key(0), times, x, cond)
