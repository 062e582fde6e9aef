import diffrax
import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from gft_jax import gaussian, paths, sampling
from gft_jax.drifts import (
    BlendParams,
    blend,
    evaluate,
    from_equinox,
    from_function,
    from_linen,
    from_nnx,
    two_times,
)

BATCH, WIDTH = 5, 3
KERNEL = np.random.default_rng(0).normal(size=(1 + 2 * WIDTH, WIDTH)).astype(np.float32)
LINEN_PARAMS = {
    "Dense_0": {"kernel": KERNEL, "bias": np.ones(WIDTH, np.float32)},
    "BatchNorm_0": {"scale": np.full(WIDTH, 2.0, np.float32), "bias": np.ones(WIDTH, np.float32)},
}
LINEN_STATS = {
    "BatchNorm_0": {"mean": np.arange(WIDTH, dtype=np.float32), "var": np.arange(1.0, 1.0 + WIDTH)}
}


@pytest.fixture
def inputs():
    key_t, key_x, key_cond = jax.random.split(jax.random.key(0), 3)
    t = jax.random.uniform(key_t, (BATCH,))
    return (
        t,
        jax.random.normal(key_x, (BATCH, WIDTH)),
        jax.random.normal(key_cond, (BATCH, WIDTH)),
    )


# Each model is x -> dropout(norm(dense([t, x, cond]))): wrong unless it runs for inference.


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, t, x, cond=None, train=True):
        h = linen.Dense(WIDTH)(jnp.concatenate([t[:, None], x, cond], axis=-1))
        h = linen.BatchNorm(use_running_average=not train)(h)
        return linen.Dropout(0.5, deterministic=not train)(h)


class LinenDropout(linen.Module):
    @linen.compact
    def __call__(self, t, x, cond):
        return linen.Dropout(0.5, deterministic=False)(x)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(1 + 2 * WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, t, x, cond):
        return self.dropout(self.norm(self.dense(jnp.concatenate([t[:, None], x, cond], axis=-1))))


class EquinoxModel(eqx.Module):
    kernel: jax.Array
    offsets: jax.Array
    dropout: eqx.nn.Dropout

    def __call__(self, t, x, cond):
        assert t.shape == ()
        return self.dropout(self.kernel @ jnp.concatenate([t[None], x, cond])) + self.offsets


def linen_row(inputs):
    t, x, cond = inputs
    drift = from_linen(LinenModel(), {"batch_stats": LINEN_STATS}, train=False)

    def direct(params):
        dense, norm = params["Dense_0"], params["BatchNorm_0"]
        h = jnp.concatenate([t[:, None], x, cond], axis=-1) @ dense["kernel"] + dense["bias"]
        h = (h - jnp.arange(3.0)) / jnp.sqrt(jnp.arange(1.0, 4.0) + 1e-5)
        return h * norm["scale"] + norm["bias"]

    return drift, LINEN_PARAMS, direct


def nnx_row(inputs):
    t, x, cond = inputs
    model = NnxModel(nnx.Rngs(2))
    model.norm.mean[...] = jnp.arange(3.0)
    drift, params = from_nnx(model)
    assert not model.dropout.deterministic  # the caller's model stays in training mode

    def direct(params):
        h = jnp.concatenate([t[:, None], x, cond], axis=-1)
        h = h @ params["dense"]["kernel"][...] + params["dense"]["bias"][...]
        h = (h - jnp.arange(3.0)) / jnp.sqrt(1 + 1e-5)
        return h * params["norm"]["scale"][...] + params["norm"]["bias"][...]

    return drift, params, direct


def equinox_row(inputs):
    t, x, cond = inputs
    drift, params = from_equinox(EquinoxModel(jnp.asarray(KERNEL.T), jnp.arange(WIDTH), eqx.nn.Dropout(0.5)))
    assert params.offsets is None  # integers are no parameters

    def direct(params):
        h = jnp.concatenate([t[:, None], x, cond], axis=-1) @ params.kernel.T
        return h + jnp.arange(WIDTH)

    return drift, params, direct


def function_row(inputs):
    t, x, cond = inputs
    drift = from_function(lambda t, x, cond: jnp.sin(t)[:, None] * x + cond)
    return drift, (), lambda params: jnp.sin(t)[:, None] * x + cond


@pytest.mark.parametrize("row", [linen_row, nnx_row, equinox_row, function_row])
def test_adapters_agree_with_the_formula_of_the_model_and_its_gradient(row, inputs):
    drift, params, direct = row(inputs)
    t, x, cond = inputs
    num_traces = 0

    def loss(params, t, x, cond):
        nonlocal num_traces
        num_traces += 1
        velocity = evaluate(drift, params, t, x, cond)
        return jnp.sum(velocity**3), velocity

    def direct_loss(params):
        velocity = direct(params)
        return jnp.sum(velocity**3), velocity

    @jax.jit
    def both(params, t, x, cond):
        (_, velocity), gradient = jax.value_and_grad(loss, has_aux=True)(params, t, x, cond)
        (_, expected), expected_gradient = jax.value_and_grad(direct_loss, has_aux=True)(params)
        return velocity, expected, gradient, expected_gradient

    velocity, expected_velocity, gradient, expected = both(params, t, x, cond)
    np.testing.assert_allclose(velocity, expected_velocity, rtol=2e-5, atol=2e-5)
    scale = 1 + float(sum(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), gradient, expected
    )

    # An optimiser takes the parameters; what is frozen stays so, and other values are no reason to trace again.
    optimizer = optax.sgd(0.1)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    moved, expected_velocity, *_ = both(params, t, x, cond)
    np.testing.assert_allclose(moved, expected_velocity, rtol=1e-4, atol=1e-4)
    assert row is function_row or np.abs(moved - velocity).max() > 1e-3
    assert num_traces == 1


def test_linen_models_in_training_mode_ask_for_what_a_drift_has_not(inputs):
    t, x, cond = inputs
    stats = {"batch_stats": LINEN_STATS}
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        evaluate(from_linen(LinenModel(), stats), LINEN_PARAMS, t, x, cond)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        evaluate(from_linen(LinenDropout()), {}, t, x, cond)
    with pytest.raises(ValueError, match=r"\['batch_stats', 'params'\]"):
        from_linen(LinenModel(), {"params": LINEN_PARAMS, **stats})
    with pytest.raises(ValueError, match="mutable"):
        from_linen(LinenModel(), stats, mutable=["batch_stats"])


def test_models_without_a_condition(inputs):
    t, x, cond = inputs

    class Unconditional(linen.Module):
        def velocity(self, t, x):
            return t[:, None] * x

    class UnconditionalNnx(nnx.Module):
        def __call__(self, t, x):
            return t[:, None] * x

    drifts = [
        (from_linen(Unconditional(), method="velocity"), {}),
        (from_linen(Unconditional(), method=Unconditional.velocity), {}),
        from_nnx(UnconditionalNnx()),
        from_equinox(lambda t, x: t * x),
        (from_function(lambda t, x: t[:, None] * x), None),
    ]
    for drift, params in drifts:
        np.testing.assert_array_equal(evaluate(drift, params, t, x), t[:, None] * x)
        with pytest.raises(ValueError, match=r"takes \(t, x\)"):
            evaluate(drift, params, t, x, cond)
    with pytest.raises(ValueError, match=r"takes \(x\)"):
        from_function(lambda x: x)
    # A default is left alone unless there is a condition; a model that demands one is told that there is none.
    np.testing.assert_array_equal(evaluate(from_function(lambda t, x, a=2.0: a * x), None, t, x), 2 * x)
    np.testing.assert_array_equal(
        evaluate(from_function(lambda t, x, a=2.0: a * x), None, t, x, cond), cond * x
    )
    demanding = from_function(lambda t, x, cond: x if cond is None else cond)
    np.testing.assert_array_equal(evaluate(demanding, None, t, x), x)


def test_evaluate_checks_shapes_and_hands_over_times_row_by_row(inputs):
    t, x, _ = inputs
    drift = from_function(lambda t, x: t[:, None] * x)
    np.testing.assert_array_equal(evaluate(drift, None, 0.25, x), 0.25 * x)
    np.testing.assert_array_equal(evaluate(drift, None, t, x), t[:, None] * x)
    np.testing.assert_array_equal(evaluate(from_function(lambda t, x: t * x), None, 1, t), t)  # scalar events
    with pytest.raises(ValueError, match=r"\(5, 1\).*\(5, 3\)"):
        evaluate(from_function(lambda t, x: x[:, :1]), None, t, x)
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(4,\)"):
        evaluate(drift, None, t[:4], x)
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(5, 1\)"):
        evaluate(drift, None, t[:, None], x)


def test_evaluate_takes_the_wider_dtype(x64):
    times = []

    def constant(params, t, x, cond=None):
        times.append(t.dtype)
        return jnp.ones(x.shape, params)

    rows = [  # dtype of x, of the drift's output, of the velocity, of t
        ("float32", "bfloat16", "float32", "float32"),
        ("bfloat16", "float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16", "float32"),
        ("float32", "float64", "float64", "float32"),
        ("float64", "float32", "float64", "float64"),
    ]
    for of_x, of_output, of_velocity, of_t in rows:
        velocity = evaluate(constant, jnp.dtype(of_output), np.float64(0.5), jnp.zeros((2, 3), of_x))
        assert velocity.dtype == of_velocity
        assert times[-1] == of_t


def gaussian_drift(params, t, x, cond=None):
    """Linear path from N(0, 1) to N(mean, sd^2), independent ends: methods, section 3."""
    mean, sd = params
    t = t[:, None]
    return mean + (t * sd**2 - (1 - t)) / (t**2 * sd**2 + (1 - t) ** 2) * (x - t * mean)


def test_blend_of_two_gaussian_drifts_is_the_formula(inputs):
    t, x, _ = inputs
    base, tuned = (0.0, 1.0), (3.0, 0.5)
    num_traces = 0

    @jax.jit
    def velocity(weight):
        nonlocal num_traces
        num_traces += 1
        return evaluate(blend(gaussian_drift), BlendParams(base, tuned, weight), t, x)

    s = t[:, None]
    v_base = (2 * s - 1) / (s**2 + (1 - s) ** 2) * x
    v_tuned = 3 + (s / 4 - (1 - s)) / (s**2 / 4 + (1 - s) ** 2) * (x - 3 * s)
    for weight in (0.0, 0.25, 0.5, 1.0):
        expected = (1 - weight) * v_base + weight * v_tuned
        np.testing.assert_allclose(velocity(jnp.asarray(weight)), expected, rtol=1e-5, atol=1e-5)
    assert num_traces == 1  # the dial moves without compilation
    by_row = jnp.linspace(0, 1, BATCH)
    expected = (1 - by_row)[:, None] * v_base + by_row[:, None] * v_tuned
    np.testing.assert_allclose(velocity(by_row), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(5, 1\)"):
        velocity(by_row[:, None])


def test_the_ends_of_a_blend_are_the_two_drifts_bit_for_bit(inputs):
    t, x, _ = inputs
    finite = from_function(lambda t, x: jnp.sin(7 * x) * 1e-3 * jnp.where(x > 0, -0.0, 1.0))
    for other in (jnp.inf, -jnp.inf, jnp.nan):
        broken = from_function(lambda t, x, other=other: jnp.full_like(x, other))
        at_base = evaluate(blend(finite, broken), BlendParams(None, None, 0.0), t, x)
        at_tuned = evaluate(blend(broken, finite), BlendParams(None, None, jnp.ones(BATCH)), t, x)
        expected = np.asarray(evaluate(finite, None, t, x)).tobytes()
        assert np.asarray(at_base).tobytes() == expected
        assert np.asarray(at_tuned).tobytes() == expected
    with pytest.raises(ValueError, match=r"\(5, 1\).*\(5, 3\)"):  # would broadcast in silence otherwise
        evaluate(blend(finite, from_function(lambda t, x: x[:, :1])), BlendParams(None, None, 0.5), t, x)


def test_blend_gradients_are_weighted(inputs):
    t, x, _ = inputs
    drift = blend(gaussian_drift)

    @jax.jit
    @jax.grad
    def total_gradient(params):
        return jnp.sum(evaluate(drift, params, t, x) * x)

    @jax.jit
    @jax.value_and_grad
    def alone(params):
        return jnp.sum(evaluate(gaussian_drift, params, t, x) * x)

    base, tuned = (0.1, 1.2), (3.0, 0.5)
    value_base, gradient_base = alone(base)
    value_tuned, gradient_tuned = alone(tuned)
    for weight in (0.0, 0.25, 1.0):
        gradient = total_gradient(BlendParams(base, tuned, weight))
        np.testing.assert_allclose(
            gradient.base, (1 - weight) * np.asarray(gradient_base), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(gradient.tuned, weight * np.asarray(gradient_tuned), rtol=1e-5, atol=1e-6)
        if 0 < weight < 1:
            np.testing.assert_allclose(gradient.target_weight, value_tuned - value_base, rtol=1e-4)


@pytest.mark.parametrize(("beta", "mean", "spread"), [(1.0, 1.839, 0.7071), (0.1, 2.828, 0.5325)])
def test_sampling_the_blend_of_two_gaussian_flows(x64, beta, mean, spread):
    """N(0, 1) to N(0, 1) and to N(3, 1/4), linear path: the sampler carries every x to mean + spread x."""

    def law(mean, std):
        return gaussian.Gaussian(jnp.asarray([mean]), jnp.asarray([[std**2]]))

    def drift(target, t, x, cond=None):
        return gaussian.marginal_velocity(paths.linear(), law(0.0, 1.0), target)(t, x)

    params = BlendParams(law(0.0, 1.0), law(3.0, 0.5), 1 / (1 + beta))
    x0 = jnp.asarray([[-1.5], [0.0], [1.0]])
    x1 = sampling.sample_ode(blend(drift), params, x0, solver=diffrax.Heun(), num_steps=200).x
    np.testing.assert_allclose(x1[:, 0], mean + spread * x0[:, 0], atol=6e-4)


def test_an_argument_s_is_a_condition_or_a_second_time(inputs):
    """A condition where it must be given and stands in its place; a second time where it has a default."""
    t, x, cond = inputs
    named = from_function(lambda t, x, s: x + s)
    np.testing.assert_array_equal(evaluate(named, (), t, x, cond), x + cond)
    twice = two_times(named)
    np.testing.assert_array_equal(twice((), t, t[:, None], x), x + t[:, None])
    optional = from_function(lambda t, x, s=None: x if s is None else x + s)
    np.testing.assert_array_equal(evaluate(optional, (), t, x), x)
    with pytest.raises(ValueError, match="A condition was given to a drift that takes none"):
        evaluate(optional, (), t, x, cond)
    with pytest.raises(ValueError, match="A condition was given to a drift that takes none"):
        twice((), t, t, x, cond)
    for function in (lambda t, x, cond, s: x, lambda t, x, *, s: x):
        with pytest.raises(ValueError, match=r"without its second time s.*two_times.*instantaneous"):
            evaluate(from_function(function), (), t, x)
