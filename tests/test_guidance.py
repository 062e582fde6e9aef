"""Guidance by a condition and between two models: the formula, the interval, and the laws that Gaussian flows reach."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import gaussian, paths
from gft_jax.drifts import BlendParams, GuidanceParams, blend, evaluate, from_function, guide
from gft_jax.sampling import sample_ode

T = jnp.array([0.1, 0.3, 0.5, 0.9])
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)


def labelled(params, t, x, cond=None):
    """A drift with a table of embeddings, the last of which stands for no label."""
    return params["table"][cond["label"]] * jnp.sin(x) + t[:, None] * cond["style"]


TABLE = {"table": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.1, 0.2]])}
COND = {"label": jnp.array([0, 1, 0, 1]), "style": jnp.ones((4, 2))}
NULL = {"label": 2, "style": np.zeros(2)}


def test_guidance_is_the_formula_and_scale_one_the_conditional_velocity_bit_for_bit():
    num_traces = 0

    @jax.jit
    def guided(scale):
        nonlocal num_traces
        num_traces += 1
        alone = evaluate(labelled, TABLE, T, X, COND)
        return evaluate(guide(labelled, NULL), GuidanceParams(TABLE, scale), T, X, COND), alone

    null_rows = {"label": jnp.full(4, 2), "style": jnp.zeros((4, 2))}
    conditional = evaluate(labelled, TABLE, T, X, COND)
    unconditional = evaluate(labelled, TABLE, T, X, null_rows)
    for scale in (-0.5, 0.0, 0.5, 1.0, 3.0):
        expected = unconditional + scale * (conditional - unconditional)
        np.testing.assert_allclose(guided(jnp.asarray(scale))[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(*guided(jnp.asarray(1.0)))
    assert num_traces == 1  # the scale moves without compilation
    by_row = jnp.array([0.0, 1.0, 2.0, 5.0])
    expected = unconditional + by_row[:, None] * (conditional - unconditional)
    np.testing.assert_allclose(guided(by_row)[0], expected, rtol=1e-5, atol=1e-5)
    # A drift that is called without a condition instead.
    bare = from_function(lambda t, x, cond=None: x if cond is None else x + cond)
    found = evaluate(guide(bare, None), GuidanceParams(None, 3.0), T, X, X)
    np.testing.assert_allclose(found, 4 * X, rtol=1e-6)


def test_a_null_condition_may_be_traced_and_the_scale_has_a_derivative_but_at_the_ends():
    styled = from_function(lambda t, x, cond: x * cond[:, None])
    cond = jnp.full(4, 3.0)

    @jax.jit
    def total(null, scale):
        params = GuidanceParams(None, scale)
        return jnp.sum(evaluate(guide(styled, null, interval=np.array([0.2, 1.0])), params, T, X, cond))

    inside = X[1:].sum()  # at T[0] there is no guidance
    np.testing.assert_allclose(total(0.5, 2.0), 3 * X[0].sum() + 5.5 * inside, rtol=1e-5)
    by_null, by_scale = jax.jit(jax.grad(total, (0, 1)))(0.5, 2.0)
    np.testing.assert_allclose(by_null, -inside, rtol=1e-5)
    np.testing.assert_allclose(by_scale, 2.5 * inside, rtol=1e-5)
    assert jax.jit(jax.grad(total, 1))(0.5, 1.0) == 0.0


@pytest.mark.parametrize("which", ["guide", "blend"])
def test_outside_the_interval_there_is_one_evaluation_and_one_velocity(which):
    """Both ends belong to it; rows at different times are told apart."""
    calls = []

    def at(value):
        def drift(params, t, x, cond=None):
            jax.debug.callback(lambda _: calls.append(value), t[0])
            return jnp.full_like(x, value)

        return drift

    interval = (0.3, 0.5)
    if which == "blend":
        drift, params, cond = blend(at(1.0), at(2.0), interval=interval), BlendParams(None, None, 4.0), None
    else:
        one = from_function(
            lambda t, x, cond: jnp.where(cond[:1] > 0, 1.0, 0.0) * at(2.0)(None, t, x) + 0 * x
        )
        # With a null condition of 0 the velocity is 0, else 2.
        drift, params, cond = guide(one, 0.0, interval=interval), GuidanceParams(None, 4.0), jnp.ones(4)
    outside, inside = {"blend": (2.0, 5.0), "guide": (2.0, 8.0)}[which]
    velocity = jax.jit(lambda t: evaluate(drift, params, t, X, cond))
    for t, expected, num_calls in [
        (jnp.full(4, 0.2), [outside] * 4, 1),
        (jnp.full(4, 0.3), [inside] * 4, 2),
        (jnp.full(4, 0.5), [inside] * 4, 2),
        (jnp.full(4, 0.51), [outside] * 4, 1),
        (T, [outside, inside, inside, outside], 2),
    ]:
        calls.clear()
        found = velocity(t)
        jax.effects_barrier()
        np.testing.assert_allclose(found, np.tile(np.array(expected)[:, None], (1, 2)))
        assert len(calls) == num_calls


def law(mean, std):
    return gaussian.Gaussian(jnp.asarray([mean]), jnp.asarray([[std**2]]))


def test_the_laws_below_at_and_above_weight_one(x64):
    """N(0, 1) to N(0, 1) (base, or no condition) and to N(3, 1/4), linear path: every x goes to mean + 0.5^w x.

    The mean is that of the Gaussian oracle; with an interval, of the oracle piece by piece.
    """

    def velocity(target):
        return gaussian.marginal_velocity(paths.linear(), law(0.0, 1.0), target)

    def conditional(params, t, x, cond=None):
        """N(3 cond, (1 - cond / 2)^2): the base at cond = 0, the target at cond = 1."""
        mean, std = 3 * cond[:, None], 1 - cond[:, None] / 2
        t = t[:, None]
        return mean + (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean)

    base, target = law(0.0, 1.0), law(3.0, 0.5)
    interval = (0.5, 1.0)
    blended_drift = blend(lambda target, t, x, cond=None: velocity(target)(t, x), interval=interval)
    x0 = jnp.asarray([[-1.5], [0.0], [1.0]])

    @jax.jit
    def samples_and_laws(weight):
        options = {"solver": diffrax.Tsit5(), "cond": jnp.ones(3)}
        guided = sample_ode(
            guide(conditional, 0.0), GuidanceParams(None, weight), x0, num_steps=40, **options
        )
        # The velocity jumps at the end of the interval; the steps stop on either side of it.
        options["stepsize_controller"] = diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=1e-7, atol=1e-7), jump_ts=interval
        )
        partly = sample_ode(blended_drift, BlendParams(base, target, weight), x0, **options)
        field = gaussian.blended_velocity(velocity(base), velocity(target), weight)
        whole = gaussian.generated_law(field, base, num_steps=200)
        half = gaussian.generated_law(velocity(target), base, t1=0.5, num_steps=100)
        return guided.x, whole, partly.x, gaussian.generated_law(field, half, t0=0.5, num_steps=100)

    for weight in (-0.5, 0.0, 0.5, 1.0, 1.5, 3.0):
        guided, whole, partly, in_parts = samples_and_laws(jnp.asarray(weight))
        np.testing.assert_allclose(whole.cov[0, 0], 0.25**weight, rtol=1e-6)
        np.testing.assert_allclose(guided[:, 0], whole.mean + 0.5**weight * x0[:, 0], atol=1e-5)
        np.testing.assert_allclose(
            partly[:, 0], in_parts.mean + jnp.sqrt(in_parts.cov[0]) * x0[:, 0], atol=1e-5
        )
        if weight not in (0.0, 1.0):  # power: neither weight nor interval goes unseen
            assert np.abs(guided - partly).max() > 0.05


def test_mistakes_are_named(without_hook):
    for interval in [
        (0.5, 0.5),
        (-0.1, 1.0),
        (0.2, 1.1),
        (0.8, 0.2),
        (float("nan"), 1.0),
        (0.2, 0.5, 1.0),
        np.array([1.0, 0.2]),
    ]:
        with pytest.raises(ValueError, match=r"0 <= start < end <= 1"):
            guide(labelled, NULL, interval=interval)
        with pytest.raises(ValueError, match=r"0 <= start < end <= 1"):
            blend(labelled, interval=interval)
    rows = [
        (NULL, None, 1.0, "cond=None"),
        ({"label": 2}, COND, 1.0, "like one row of cond"),
        (
            {"label": np.array([2, 2]), "style": np.zeros(2)},
            COND,
            1.0,
            r"null_cond\['label'\].*\(\), got shape \(2,\)",
        ),
        ({"label": 0.5, "style": np.zeros(2)}, COND, 1.0, "is 0.5, which int32"),
        (NULL, COND, jnp.ones(3), r"scale must be a scalar or have shape \(4,\).*\(3,\)"),
    ]
    for null, cond, scale, message in rows:
        with pytest.raises(ValueError, match=message):
            evaluate(guide(labelled, null), GuidanceParams(TABLE, scale), T, X, cond)
    with pytest.raises(ValueError, match=r"GuidanceParams\(params, scale\) as its parameters, got dict"):
        evaluate(guide(labelled, NULL), TABLE, T, X, COND)
    with pytest.raises(ValueError, match=r"BlendParams\(base, tuned, target_weight\) .*, got dict"):
        evaluate(blend(labelled), TABLE, T, X, COND)
