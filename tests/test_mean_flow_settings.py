"""MeanFlow with guidance in its target, at zero temperature, by other derivatives, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import affine, flat, gradient, laws, mean_loss, prepare
from mean_flow_toy import PARAMS, rows_of, two_time_affine

import gft_jax as gft
from gft_jax.objectives import TargetGuidance, gradual_mean_flow, mean_flow


def conditional(params, t, s, x, cond=None):
    """A drift that depends on its condition, a label of which 2 is null, and a vector."""
    shift = cond["label"] + jnp.nan_to_num(cond["vector"], nan=-1.0)
    return params * x + (shift * (1 + s - t))[:, None]


def by_label(params, t, x, cond=None):
    """A base drift of one time that depends on the label."""
    return params * x + cond["label"][:, None]


def test_guidance_is_folded_into_velocity_and_derivative(x64):
    vectors = jnp.array([0.5, 2, jnp.nan, 1, 0.5, 2, jnp.nan, 1])
    labels = {"label": jnp.array([0, 1, 2, 2, 0, 1, 2, 2]), "vector": vectors}
    batch = rows_of(laws()[2], 8)._replace(cond=labels)
    guidance = TargetGuidance(3.0, {"label": 2, "vector": np.nan}, kappa=0.25, interval=(0.0, 0.5))
    params, base_params = jnp.asarray(0.7), jnp.asarray(-1.5)
    settings = {"same_time": 0.5, "guidance": guidance}
    objective = mean_flow(conditional, **settings)
    for each, beta in (
        (objective, 0.0),
        (gradual_mean_flow(conditional, base_drift=by_label, **settings), 3.0),
    ):
        rows = jax.device_get(prepare(each, params, base_params, batch, beta))
        t, s, x = rows.path.t, rows.s, rows.path.x
        w = 1 / (1 + beta)
        v = w * rows.path.velocity + (1 - w) * by_label(base_params, t, x, labels)
        null = {"label": np.full(8, 2), "vector": np.full(8, np.nan)}
        with_cond, without = (conditional(params, t, t, x, cond) for cond in (labels, null))
        guided = 2.25 * v + 0.25 * with_cond + (1 - 2.25 - 0.25) * without
        applies = (t <= 0.5) & (np.arange(8) % 4 != 2)  # rows 2 and 6 alone are null in both entries
        assert 0 < applies.sum() < 6
        velocity = np.where(applies[:, None], guided, v)
        shift = labels["label"] + jnp.nan_to_num(labels["vector"], nan=-1.0)
        rate = params * velocity - shift[:, None]
        np.testing.assert_allclose(rows.target, velocity + (s - t)[:, None] * rate, rtol=1e-12)
    assert (
        "displacement_squared"
        not in mean_loss(gradual_mean_flow(conditional, guidance=guidance), params, params, batch, 1.0)[1]
    )
    with pytest.raises(ValueError, match="cond=None"):
        gft.mean_loss(objective, params, None, batch._replace(cond=None))


def test_at_zero_temperature_the_base_is_not_evaluated():
    batch, calls = rows_of(laws()[2], 8), []

    def counted(params, t, x, cond=None):
        def count(x):
            calls.append(len(x))
            return x

        return params * jax.pure_callback(count, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    params = jax.tree.map(np.float32, PARAMS)
    objective = gradual_mean_flow(two_time_affine, base_drift=counted)
    rows = jax.device_get(prepare(objective, params, jnp.nan, batch, 0.0))
    assert np.isfinite(rows.target).all()
    assert calls == []
    rows = jax.device_get(prepare(objective, params, jnp.nan, batch, 1.0))
    assert np.isnan(rows.target).all()
    assert calls == [8]


def test_guidance_by_numbers_of_numpy_leaves_dtypes_as_they_are(x64):
    batch = rows_of(laws()[2], 4)
    half = jax.tree.map(lambda end: end.astype(jnp.float32), (batch.x0, batch.x1))
    cond = {"label": jnp.arange(4) % 3, "vector": jnp.ones(4, jnp.float32)}
    batch = batch._replace(x0=half[0], x1=half[1], cond=cond)
    null_cond = {"label": 2, "vector": np.float32(0)}
    targets = [
        prepare(
            mean_flow(conditional, guidance=TargetGuidance(scale, null_cond)), jnp.float32(0.7), None, batch
        ).target
        for scale in (2.0, np.float64(2.0))
    ]
    assert targets[1].dtype == jnp.float32
    np.testing.assert_array_equal(*targets)


@jax.custom_vjp
def no_forward_mode(x):
    return jnp.tanh(x)


no_forward_mode.defvjp(lambda x: (jnp.tanh(x), x), lambda x, out: (out * (1 - jnp.tanh(x) ** 2),))


def test_a_drift_without_forward_mode_takes_the_derivative_of_another_form():
    batch = rows_of(laws()[2], 8)

    def drift(activation):
        return lambda params, t, s, x, cond=None: activation(affine(params, t, x) + (s - t)[:, None])

    with pytest.raises(ValueError, match=r"no forward-mode derivative.*tangent_drift"):
        gft.mean_loss(mean_flow(drift(no_forward_mode)), PARAMS, None, batch)
    smooth = drift(jnp.tanh)
    ours = mean_flow(drift(no_forward_mode), tangent_drift=smooth)
    slopes = [gradient(objective, PARAMS, None, batch, 0.0)[0] for objective in (ours, mean_flow(smooth))]
    np.testing.assert_allclose(flat(slopes[0]), flat(slopes[1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"same_time": 1.5}, r"same_time.*\[0, 1\], got 1\.5"),
        ({"same_time": 0.123}, r"denominator of at most 64.*0\.123"),
        ({"adaptive_power": -1.0}, "p=-1"),
        ({"adaptive_offset": 0.0}, "c=0"),
        ({"guidance": TargetGuidance(float("nan"), 1)}, "scale.*nan"),
        ({"guidance": TargetGuidance(2.0, 1, kappa=1.0)}, r"kappa.*1\.0"),
        ({"guidance": TargetGuidance(2.0, None)}, "needs null_cond"),
        ({"guidance": TargetGuidance(2.0, 1, interval=(0.5, 0.2))}, "0 <= start < end <= 1"),
        ({"guidance": TargetGuidance(2.0, 1), "same_time": 0.0}, "same_time=0 no row trains"),
        ({"tangent_drift": affine}, "no second time"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    for objective in (mean_flow, gradual_mean_flow):
        with pytest.raises(ValueError, match=message):
            objective(two_time_affine, **settings)


def test_a_drift_of_one_time_and_rows_that_do_not_divide_are_refused():
    for objective in (mean_flow, gradual_mean_flow):
        with pytest.raises(ValueError, match=r"no second time.*two_time_params.*two_times"):
            objective(affine)
        with pytest.raises(
            ValueError, match=r"same_time=0\.75.*of each micro-batch.*multiple of 4, got 6 rows"
        ):
            gft.mean_loss(objective(two_time_affine), PARAMS, PARAMS, rows_of(laws()[2], 6), 1.0)
    with pytest.raises(ValueError, match="base_params is None"):
        gft.mean_loss(gradual_mean_flow(two_time_affine), PARAMS, None, rows_of(laws()[2], 4), 1.0)
