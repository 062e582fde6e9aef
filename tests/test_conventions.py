"""Models of other conventions on Gaussian data, where every prediction has a closed form; units of events."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import paths
from gft_jax.data import Normalisation, restored
from gft_jax.drifts import (
    ModelTime,
    evaluate,
    from_convention,
    from_linen,
    in_data_units,
    in_normalised_units,
    model_time,
)
from gft_jax.gaussian import Gaussian, marginal_velocity
from gft_jax.networks import SiT
from gft_jax.sampling import sample_ode

MEAN, STD = 3.0, 0.5
TABLE = np.cumprod(1 - np.linspace(1e-4, 0.2, 41))
PATHS = {
    "linear": paths.linear(),
    "trigonometric": paths.trigonometric(),
    "variance preserving": paths.variance_preserving(),
    "tabulated": paths.tabulated(TABLE),
}
FORMULAS = {
    "noise": paths.velocity_from_noise,
    "data": paths.velocity_from_data,
    "score": paths.velocity_from_score,
    "v": paths.velocity_from_v,
}


def law(mean, std):
    return Gaussian(jnp.asarray([mean]), jnp.asarray([[std**2]]))


def predictions(path, t, x):
    """What exact models predict of N(0, 1) to N(MEAN, STD^2), independent ends, in flow time."""
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    score = -(x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    noise, data = -sigma * score, MEAN - alpha * STD**2 * score
    return {"noise": noise, "data": data, "score": score, "v": alpha * noise - sigma * data}


def times_and_positions():
    rng = np.random.default_rng(0)
    t = jnp.linspace(0.05, 0.95, 7)
    return t, jnp.asarray(rng.normal(size=(7, 1)))


def test_every_prediction_on_every_path_becomes_the_marginal_velocity(x64):
    t, x = times_and_positions()

    @jax.jit
    def velocities(t, x):
        found = {}
        for name, path in PATHS.items():
            expected = marginal_velocity(path, law(0.0, 1.0), law(MEAN, STD))(t, x)
            for predicted, formula in FORMULAS.items():

                def model(params, time, x, cond=None, path=path, predicted=predicted):
                    return params * predictions(path, 1 - time, x)[predicted]

                drift = from_convention(model, model_time(), path, formula, ends=(1e-3, 1 - 1e-3))
                found[name, predicted] = evaluate(drift, 1.0, t, x), expected
        return found

    for row, (velocity, expected) in velocities(t, x).items():
        np.testing.assert_allclose(velocity, expected, rtol=1e-9, atol=1e-9, err_msg=str(row))


def test_time_and_sign_of_a_velocity_turn_together(x64):
    """Linear path; the models count their own time and predict noise - data or data - noise of it."""
    t, x = times_and_positions()

    def model(of_time, sign):
        def predict(params, time, x, cond=None):
            found = predictions(PATHS["linear"], of_time(time), x)
            return sign * (found["data"] - found["noise"])

        return predict

    rows = [
        (model(lambda u: 1 - u, -1), model_time()),
        (model(lambda u: u, 1), model_time(to_noise=False)),
        (model(lambda u: 1 - u / 1000, -1), model_time(scale=1000)),
        (model(lambda u: 1 - 3 * u / (1 + 2 * u), -1), model_time(shift=3)),
        (model(lambda u: 3 * u / (5 + 2 * u), 1), model_time(to_noise=False, scale=5, shift=3)),
        (model(jnp.exp, -1), ModelTime(jnp.log, to_noise=True)),
    ]
    expected = marginal_velocity(PATHS["linear"], law(0.0, 1.0), law(MEAN, STD))(t, x)
    for predict, time in rows:
        velocity = evaluate(from_convention(predict, time), None, t, x)
        np.testing.assert_allclose(velocity, expected, rtol=1e-9, atol=1e-9)
        for wrong in (time._replace(to_noise=not time.to_noise), model_time(scale=7)):
            assert np.abs(evaluate(from_convention(predict, wrong), None, t, x) - expected).max() > 0.1


def test_whole_steps_are_those_of_the_table(x64):
    """A noise prediction that looks its step up, at the flow times of the steps and between them."""
    steps = np.array([40, 30, 17, 1, 0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1)))
    seen = []

    def model(params, step, x, cond=None):
        assert step.dtype == jnp.int32
        seen.append(np.asarray(step))
        alpha, sigma = jnp.sqrt(params)[step][:, None], jnp.sqrt(1 - params)[step][:, None]
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)

    path = paths.tabulated(TABLE)
    drift = from_convention(model, model_time(scale=40, integer=True), path, paths.velocity_from_noise)
    t = jnp.asarray(1 - steps / 40)
    np.testing.assert_allclose(path.alpha(t) ** 2, TABLE[steps], rtol=1e-12)
    np.testing.assert_allclose(path.sigma(t) ** 2, 1 - TABLE[steps], rtol=1e-12)
    expected = marginal_velocity(path, law(0.0, 1.0), law(MEAN, STD))(t, x)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(evaluate(drift, jnp.asarray(TABLE), t, x), expected, rtol=1e-9)
    evaluate(drift, jnp.asarray(TABLE), jnp.clip(t + 0.4 / 40, 0, 1), x)
    np.testing.assert_array_equal(seen, [steps, steps])


def test_a_network_that_counts_steps_is_called_with_them():
    """DiT: SiT's network, whose output is the noise at a step from 0 (data) to 999."""
    module, rng = SiT(8, 1, 2, 2), np.random.default_rng(0)
    t, x = jnp.asarray([0.25, 0.8]), jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), t, x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    path = paths.tabulated(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    drift = from_convention(
        from_linen(module), model_time(scale=999, integer=True), path, paths.velocity_from_noise
    )
    noise = module.apply({"params": params}, jnp.asarray([749.0, 200.0]), x)
    assert np.abs(noise - module.apply({"params": params}, 1 - t, x)).max() > 0.1
    expected = paths.velocity_from_noise(path, t, x, noise)
    np.testing.assert_allclose(evaluate(drift, params, t, x), expected, rtol=1e-4, atol=1e-4)


def test_times_of_models():
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_array_equal(model_time(scale=1000).of_flow_time(t), [1000, 750, 0])
    np.testing.assert_array_equal(model_time(scale=999, integer=True).of_flow_time(t), [999, 749, 0])
    np.testing.assert_array_equal(model_time(to_noise=False).of_flow_time(t), t)
    u = model_time(shift=3).of_flow_time(t)
    np.testing.assert_allclose(3 * u / (1 + 2 * u), 1 - t, rtol=1e-6)
    assert abs(float(u[1]) - 0.5) < 1e-6  # and not the shift the other way, 0.9


@pytest.mark.parametrize(("predicted", "ends"), [("noise", (1e-3, 1)), ("data", (0, 1 - 1e-3))])
def test_a_flow_through_the_singular_end_arrives(x64, predicted, ends):
    """N(0, 1) to N(3, 1/4), linear path: the flow carries x to 3 + x / 2."""

    def model(params, time, x, cond=None):
        return predictions(PATHS["linear"], 1 - time, x)[predicted]

    drift = from_convention(model, model_time(), PATHS["linear"], FORMULAS[predicted], ends=ends)
    x0 = jnp.asarray([[-1.5], [0.0], [1.0]])
    x1 = sample_ode(drift, None, x0, solver=diffrax.Heun(), num_steps=200).x
    np.testing.assert_allclose(x1, MEAN + STD * x0, atol=2e-3)


def test_conventions_that_cannot_be_are_refused():
    noise, data, linear = paths.velocity_from_noise, paths.velocity_from_data, paths.linear()

    def model(params, time, x, cond=None):
        return x

    rows = [
        ((linear, noise), {}, r"velocity_from_noise is not finite at t = 0.0.*ends=\(0.001, 1.0\)"),
        ((linear, data), {}, r"velocity_from_data is not finite at t = 1.0.*ends=\(0.0, 0.999\)"),
        ((paths.variance_preserving(), noise), {}, "t = 1.0"),
        ((paths.brownian_bridge(1.0), noise), {}, "no alpha and sigma"),
        ((linear, None), {}, "path was given without velocity_from"),
        ((None, noise), {}, "velocity_from was given without path"),
        ((), {"ends": (0.5, 0.5)}, r"ends are \(0.5, 0.5\)"),
        ((), {"ends": (0, 1.5)}, r"ends are \(0, 1.5\)"),
    ]
    for arguments, options, message in rows:
        with pytest.raises(ValueError, match=message):
            from_convention(model, model_time(), *arguments, **options)
    for options in ({"scale": 0}, {"shift": -1.0}, {"scale": float("inf")}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            model_time(**options)
    with_variances = from_convention(lambda params, time, x, cond: jnp.tile(x, 2), model_time())
    with pytest.raises(ValueError, match=r"predicted shape \(2, 6\) for x of shape \(2, 3\)"):
        evaluate(with_variances, None, 0.5, jnp.ones((2, 3)))
    for table, message in (
        ([0.5], r"got \(1,\)"),
        ([[0.9, 0.1]], r"got \(1, 2\)"),
        ([0.1, 0.9], "must fall"),
        ([1.0, 0.1], "must fall"),
    ):
        with pytest.raises(ValueError, match=message):
            paths.tabulated(np.array(table))


def test_predictions_are_converted_in_single_precision_at_least():
    def model(params, time, x, cond=None):
        return x / 3

    drift = from_convention(model, model_time(), paths.linear(), paths.velocity_from_noise, ends=(1e-3, 1))
    x = jnp.array([1.0, 0.3], jnp.bfloat16)
    velocity = drift(None, jnp.array([0.0, 0.9]), x)
    expected = (x.astype(np.float32) - (x / 3).astype(np.float32)) / np.array([1e-3, 0.9], np.float32)
    assert velocity.dtype == jnp.float32
    np.testing.assert_allclose(velocity, expected, rtol=1e-5)


# ---- Units

LATENTS = Normalisation(np.array([0.5, -2.0]), np.array([5.5, 0.1]))


def latent_drift(params, t, z, cond=None):
    return params * jnp.sin(t[:, None, None] + z) + cond[:, None, None]


def test_flows_in_data_units_are_the_restored_flows_of_normalised_events(x64):
    rng = np.random.default_rng(0)
    z, cond = jnp.asarray(rng.normal(size=(4, 3, 2))), jnp.arange(4.0)
    raw = in_data_units(latent_drift, LATENTS)
    back = in_normalised_units(raw, LATENTS)

    @jax.jit
    def flows(z):
        starts = {latent_drift: z, raw: restored(z, LATENTS), back: z}
        return [sample_ode(drift, 0.7, x0, cond=cond, num_steps=5).x for drift, x0 in starts.items()]

    normalised, in_units, again = flows(z)
    np.testing.assert_allclose(in_units, restored(normalised, LATENTS), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(again, normalised, rtol=1e-12)
    assert np.abs(in_units - normalised).max() > 1


def test_the_velocity_in_data_units_is_that_of_the_scaled_laws(x64):
    """Latents 0.18215 x of N(-4, 2^2): from N(0, 1) in latents, that is from N(0, 1 / 0.18215^2) in x."""
    factor, path = 0.18215, paths.trigonometric()
    of_latents = marginal_velocity(path, law(0.0, 1.0), law(-4 * factor, 2 * factor))
    of_data = marginal_velocity(path, law(0.0, 1 / factor), law(-4.0, 2.0))
    t, x = times_and_positions()
    raw = in_data_units(lambda params, t, z, cond: of_latents(t, z), Normalisation(0.0, 1 / factor))
    np.testing.assert_allclose(evaluate(raw, None, t, x), of_data(t, x), rtol=1e-12)
    assert np.abs(evaluate(raw, None, t, x) - of_latents(t, x)).max() > 0.1


def test_units_that_do_not_fit_are_refused():
    rows = [
        (Normalisation(0.0, 0.0), "scale of a normalisation must be positive"),
        (Normalisation(np.nan, 1.0), "mean of a normalisation must be finite"),
        (Normalisation(np.zeros(3), 1.0), r"mean of shape \(3,\) does not broadcast.*\(3, 2\)"),
    ]
    for normalisation, message in rows:
        for convert in (in_data_units, in_normalised_units):
            with pytest.raises(ValueError, match=message):
                evaluate(convert(latent_drift, normalisation), 1.0, 0.5, jnp.ones((4, 3, 2)), jnp.ones(4))
