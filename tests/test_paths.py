"""Paths: closed forms, fixtures, autodiff parity, ends, conversions and their conditions."""

import functools
from pathlib import Path as FilePath

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import paths
from gft_jax.gaussian import Gaussian, marginal_velocity

AFFINE = {
    "linear": paths.linear(),
    "floor": paths.linear(floor=0.05),
    "trigonometric": paths.trigonometric(),
    "variance preserving": paths.variance_preserving(),
}
NOISY = {
    "linear + noise": paths.with_constant_noise(paths.linear(), 0.1),
    "trigonometric + noise": paths.with_constant_noise(paths.trigonometric(), 0.1),
    "bridge": paths.brownian_bridge(0.8),
}
PATHS = AFFINE | NOISY
EVENTS = [(), (3,), (2, 3), (2, 1, 3)]
NUM_ROWS = 5

FROM_VELOCITY = {
    paths.score_from_velocity: paths.velocity_from_score,
    paths.noise_from_velocity: paths.velocity_from_noise,
    paths.data_from_velocity: paths.velocity_from_data,
}
CONVERSIONS = [*FROM_VELOCITY, *FROM_VELOCITY.values()]


def _inputs(event, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    t = jnp.asarray(rng.uniform(0.02, 0.98, NUM_ROWS), dtype)
    x0, x1, noise = (jnp.asarray(rng.normal(size=(NUM_ROWS, *event)), dtype) for _ in range(3))
    return t, x0, x1, noise


def _noise_for(path, noise):
    return noise if path.noisy else None


# ---- The conditional path


@pytest.mark.parametrize(
    ("name", "path", "source", "velocity_tolerance"),
    [
        ("icfm", paths.with_constant_noise(paths.linear(), 0.1), "x0", 1e-12),
        ("vp", paths.with_constant_noise(paths.trigonometric(), 0.1), "x0", 1e-12),
        ("fm", paths.linear(floor=0.05), "eps", 1e-12),
        # The reference keeps 1e-8 in a denominator, hence its looser velocity.
        ("sb", paths.brownian_bridge(0.8), "x0", 1e-5),
    ],
)
def test_agrees_with_the_reference_values(x64, name, path, source, velocity_tolerance):
    with np.load(FilePath(__file__).parent / "data" / "conditional_paths.npz") as file:
        data = {key: jnp.asarray(file[key]) for key in file.files}
    point = path.point(data["t"], data[source], data["x1"], _noise_for(path, data["eps"]))
    np.testing.assert_allclose(point.x, data[f"{name}_xt"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        point.velocity, data[f"{name}_ut"], rtol=velocity_tolerance, atol=velocity_tolerance
    )


def _derivative_and_velocity(path, t, x0, x1, noise):
    given = _noise_for(path, noise)
    derivative = jax.jvp(lambda t: path.point(t, x0, x1, given).x, (t,), (jnp.ones_like(t),))[1]
    return derivative, path.point(t, x0, x1, given).velocity


def test_velocity_is_the_derivative_of_the_position_at_every_event_rank(x64):
    @jax.jit
    def of_all_paths(inputs):
        return {
            name: [_derivative_and_velocity(path, *given) for given in inputs] for name, path in PATHS.items()
        }

    for name, pairs in of_all_paths([_inputs(event) for event in EVENTS]).items():
        for event, (derivative, velocity) in zip(EVENTS, pairs, strict=True):
            assert velocity.shape == (NUM_ROWS, *event)
            np.testing.assert_allclose(velocity, derivative, rtol=1e-12, atol=1e-12, err_msg=name)


def test_coefficients_and_their_derivatives_have_their_closed_forms(x64):
    t = np.linspace(0.0, 0.99, 12)
    s, half_pi = 1 - t, np.pi / 2
    alpha_vp = np.exp(-(0.1 * s + 19.9 * s**2 / 2) / 2)
    sigma_vp = np.sqrt(1 - alpha_vp**2)
    alpha_dot_vp = alpha_vp * (0.1 + 19.9 * s) / 2
    expected = {
        "linear": (t, 1 - t, 1, -1, 1),
        "floor": (t, 1 - 0.95 * t, 1, -0.95, 1),
        "trigonometric": (
            np.sin(half_pi * t),
            np.cos(half_pi * t),
            half_pi * np.cos(half_pi * t),
            -half_pi * np.sin(half_pi * t),
            half_pi,
        ),
        "variance preserving": (
            alpha_vp,
            sigma_vp,
            alpha_dot_vp,
            -alpha_vp * alpha_dot_vp / sigma_vp,
            alpha_dot_vp / sigma_vp,
        ),
    }
    for name, path in AFFINE.items():
        alpha, sigma, alpha_dot, sigma_dot = found = paths.coefficients(path, jnp.asarray(t))
        determinant = alpha_dot * sigma - alpha * sigma_dot
        for value, closed_form in zip((*found, determinant), expected[name], strict=True):
            np.testing.assert_allclose(value, np.broadcast_to(closed_form, t.shape), rtol=1e-12, atol=1e-12)


def test_sigma_keeps_its_digits_near_the_data_in_single_precision():
    t = jnp.float32(1 - 2**-16)
    s = 2.0**-16
    accumulated = 0.1 * s + 19.9 * s**2 / 2
    closed_forms = {
        "linear": s,
        "trigonometric": np.sin(np.pi / 2 * s),
        "variance preserving": np.sqrt(-np.expm1(-accumulated)),
    }
    for name, sigma in closed_forms.items():
        np.testing.assert_allclose(AFFINE[name].sigma(t), sigma, rtol=3e-7)


def test_bridge_has_the_velocity_and_the_drift_of_the_pinned_brownian_motion(x64):
    g = 0.8
    t, x0, x1, noise = _inputs(())
    point = paths.brownian_bridge(g).point(t, x0, x1, noise)
    deviation = point.x - ((1 - t) * x0 + t * x1)
    velocity = (1 - 2 * t) / (2 * t * (1 - t)) * deviation + x1 - x0
    np.testing.assert_allclose(point.velocity, velocity, rtol=1e-11)
    np.testing.assert_allclose(point.velocity + g**2 / 2 * point.score, (x1 - point.x) / (1 - t), rtol=1e-11)


def test_score_is_the_gradient_of_the_conditional_log_density(x64):
    @jax.jit
    def gradients_and_scores(t, x0, x1, noise):
        spreads = {
            "linear + noise": jnp.full_like(t, 0.1),
            "trigonometric + noise": jnp.full_like(t, 0.1),
            "bridge": 0.8 * jnp.sqrt(t * (1 - t)),
        }
        pairs = {}
        for name, path in NOISY.items():
            mean = path.point(t, x0, x1, jnp.zeros_like(noise)).x
            point = path.point(t, x0, x1, noise)
            gradient = jax.vmap(jax.grad(jax.scipy.stats.norm.logpdf))(point.x, mean, spreads[name])
            pairs[name] = gradient, point.score
        return pairs

    for gradient, score in gradients_and_scores(*_inputs(())).values():
        np.testing.assert_allclose(score, gradient, rtol=1e-10)
    for path in AFFINE.values():
        assert jax.eval_shape(path.point, *_inputs(())[:3], None).score is None


# ---- Ends


def test_every_path_starts_at_the_source_and_ends_at_the_data():
    @jax.jit
    def starts_and_ends(x0, x1, noise):
        times = jnp.zeros(NUM_ROWS), jnp.ones(NUM_ROWS)
        return {
            name: [path.point(t, x0, x1, _noise_for(path, noise)).x for t in times]
            for name, path in PATHS.items()
        }

    _, x0, x1, noise = _inputs((2,), np.float32)
    alpha = np.exp(-20.1 / 4)
    for name, (start, end) in starts_and_ends(x0, x1, noise).items():
        if name in {"linear", "trigonometric", "bridge"}:
            np.testing.assert_array_equal(start, x0)
            np.testing.assert_array_equal(end, x1)
        elif name == "floor":
            np.testing.assert_array_equal(start, x0)
            np.testing.assert_allclose(end, x1 + 0.05 * x0, rtol=1e-6, atol=1e-7)
        elif name == "variance preserving":
            np.testing.assert_allclose(start, alpha * x1 + np.sqrt(1 - alpha**2) * x0, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(end, x1)
        else:
            np.testing.assert_allclose(start, x0 + 0.1 * noise, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(end, x1 + 0.1 * noise, rtol=1e-6, atol=1e-7)


def test_velocity_at_the_ends_is_infinite_where_the_docstrings_say_so():
    ends = jnp.array([0.0, 1.0])
    x0, x1 = jnp.array([2.0, 2.0]), jnp.array([-1.0, -1.0])
    bridge, vp = paths.brownian_bridge(0.8), paths.variance_preserving()

    @jax.jit
    def points(noise):
        regular = [
            path.point(ends, x0, x1, None).velocity for path in (paths.linear(), paths.trigonometric())
        ]
        infinite = [vp.point(ends, source, x1, None).velocity for source in (x0, 0 * x0)]
        return regular, infinite, bridge.point(ends, x0, x1, noise)

    (linear, trigonometric), (infinite, undefined), up = points(jnp.full(2, 1.5))
    np.testing.assert_array_equal(linear, [-3.0, -3.0])
    np.testing.assert_allclose(trigonometric, [-np.pi / 2, -np.pi], rtol=1e-6)
    assert np.isfinite(infinite[0])
    assert infinite[1] == -np.inf
    assert np.isnan(undefined[1])
    np.testing.assert_array_equal(up.velocity, [np.inf, -np.inf])
    np.testing.assert_array_equal(up.score, [-np.inf, -np.inf])
    down = points(jnp.full(2, -1.5))[-1]
    np.testing.assert_array_equal(down.velocity, [-np.inf, np.inf])
    np.testing.assert_array_equal(down.score, [np.inf, np.inf])
    zero = points(jnp.zeros(2))[-1]
    np.testing.assert_array_equal(zero.x, [2.0, -1.0])
    assert np.isnan([*zero.velocity, *zero.score]).all()


# ---- Sampling


def test_noise_of_a_row_is_drawn_from_its_own_key_alone():
    sampled = {name: PATHS[name] for name in ("linear", "linear + noise", "bridge")}

    @jax.jit
    def samples_and_points(keys, t, x0, x1, noise):
        return [
            (path.sample(keys, t, x0, x1), path.point(t, x0, x1, _noise_for(path, noise)))
            for path in sampled.values()
        ]

    keys = jax.random.split(jax.random.key(0), NUM_ROWS)
    t, x0, x1, _ = _inputs((2, 3), np.float32)
    noise = jnp.stack([jax.random.normal(key, (2, 3), jnp.float32) for key in keys])
    for sample, point in samples_and_points(keys, t, x0, x1, noise):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sample, point)


def test_bridge_has_the_variance_of_a_brownian_bridge():
    num_samples, g, t = 20_000, 0.8, 0.2
    keys = jax.random.split(jax.random.key(3), num_samples)
    ends = jnp.full(num_samples, t), jnp.full(num_samples, -1.0), jnp.full(num_samples, 2.0)
    x = np.asarray(jax.jit(paths.brownian_bridge(g).sample)(keys, *ends).x, np.float64)

    def z_of_variance(variance):
        return (np.mean((x - (-1 + 3 * t)) ** 2) / variance - 1) * np.sqrt(num_samples / 2)

    assert abs(z_of_variance(g**2 * t * (1 - t))) < 4
    assert abs(z_of_variance(g**2 * t)) > 10  # free Brownian motion
    assert abs(z_of_variance(g**2 * t * (1 - t) * 1.1)) > 5


# ---- Conversions


def test_conversions_are_mutually_inverse(x64):
    @jax.jit
    def round_trips(t, x, velocity):
        return [
            back(path, t, x, convert(path, t, x, velocity))
            for path in AFFINE.values()
            for convert, back in FROM_VELOCITY.items()
        ]

    t, x, velocity, _ = _inputs((2, 3))
    for recovered in round_trips(t, x, velocity):
        np.testing.assert_allclose(recovered, velocity, rtol=1e-9, atol=1e-9)


def test_conversions_agree_with_the_marginals_of_gaussian_data(x64):
    root = np.random.default_rng(1).normal(size=(3, 3))
    mean, cov = np.array([1.0, -2.0, 0.5]), root @ root.T + 0.2 * np.eye(3)
    source = Gaussian(jnp.zeros(3), jnp.eye(3))
    target = Gaussian(jnp.asarray(mean), jnp.asarray(cov))
    t, x, _, _ = _inputs((3,))

    @jax.jit
    def converted(path_values):
        found = {}
        for name, path in AFFINE.items():
            velocity = marginal_velocity(path, source, target)(t, x)
            from_velocity = [convert(path, t, x, velocity) for convert in FROM_VELOCITY]
            from_value = [
                back(path, t, x, value)
                for back, value in zip(FROM_VELOCITY.values(), path_values[name], strict=True)
            ]
            found[name] = velocity, from_velocity, from_value
        return found

    values = {}
    for name, path in AFFINE.items():
        alpha, sigma = np.asarray(path.alpha(t)), np.asarray(path.sigma(t))
        covs = alpha[:, None, None] ** 2 * cov + sigma[:, None, None] ** 2 * np.eye(3)
        score = -np.linalg.solve(covs, (x - alpha[:, None] * mean)[..., None])[..., 0]
        noise = -sigma[:, None] * score
        data = mean - alpha[:, None] * score @ cov
        values[name] = [jnp.asarray(value) for value in (score, noise, data)]
    for name, (velocity, from_velocity, from_value) in converted(values).items():
        np.testing.assert_allclose(from_velocity, values[name], rtol=1e-9, atol=1e-9)
        for found in from_value:
            np.testing.assert_allclose(found, velocity, rtol=1e-9, atol=1e-9)


def test_under_an_optimal_transport_coupling_the_means_hold_and_the_score_does_not(x64):
    # The map from N(0, 1) to N(3, 0.5^2): x_t is a bijection of x0, so the expected ends are the ends themselves.
    @jax.jit
    def converted(t, x0, x1):
        found = {}
        for name, path in AFFINE.items():
            x, velocity, _ = path.point(t, x0, x1, None)
            true_score = -(x - path.alpha(t) * 3.0) / (path.alpha(t) * 0.5 + path.sigma(t)) ** 2
            found[name] = true_score, [convert(path, t, x, velocity) for convert in FROM_VELOCITY]
        return found

    t, x0, _, _ = _inputs(())
    x1 = 3.0 + 0.5 * x0
    for true_score, (score, noise, data) in converted(t, x0, x1).values():
        np.testing.assert_allclose(noise, x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(data, x1, rtol=1e-9, atol=1e-9)
        assert np.max(np.abs(score - true_score)) > 0.1


def test_conversions_at_the_ends_do_what_their_docstrings_say():
    t = jnp.array([0.0, 1.0])
    x, value = jnp.array([0.7, 0.7]), jnp.array([0.2, 0.2])
    half_pi = np.pi / 2
    not_finite = None
    expected = {
        # (at t = 0, at t = 1) of score, noise, data from velocity, then velocity from score, noise, data
        "linear": [
            (-0.7, not_finite),
            (0.7, 0.7 - 0.2),
            (0.7 + 0.2, 0.7),
            (not_finite, 0.7),
            (not_finite, 0.7 - 0.2),
            (0.2 - 0.7, not_finite),
        ],
        "floor": [
            (-0.7, (0.2 - 0.7) / 0.05),
            (0.7, 0.7 - 0.2),
            (0.2 + 0.95 * 0.7, 0.05 * 0.2 + 0.95 * 0.7),
            (not_finite, 0.7 + 0.05 * 0.2),
            (not_finite, 0.7 - 0.2),
            (0.2 - 0.95 * 0.7, (0.2 - 0.95 * 0.7) / 0.05),
        ],
        "trigonometric": [
            (-0.7, not_finite),
            (0.7, -0.2 / half_pi),
            (0.2 / half_pi, 0.7),
            (not_finite, 0.0),
            (not_finite, -half_pi * 0.2),
            (half_pi * 0.2, not_finite),
        ],
    }

    @jax.jit
    def converted(values):
        return {
            name: [convert(AFFINE[name], t, x, values[name]) for convert in CONVERSIONS] for name in AFFINE
        }

    # The velocity of the variance-preserving path is infinite at t = 1.
    found = converted(dict.fromkeys(AFFINE, value) | {"variance preserving": jnp.array([0.2, -jnp.inf])})
    for name, ends in expected.items():
        for result, wanted_ends in zip(found[name], ends, strict=True):
            for number, wanted in zip(result, wanted_ends, strict=True):
                if wanted is not_finite:
                    assert not np.isfinite(number)
                else:
                    np.testing.assert_allclose(number, wanted, rtol=1e-5, atol=1e-6)
    for start, end in found["variance preserving"]:
        assert np.isfinite(start)
        assert not np.isfinite(end)


# ---- Contracts


def test_results_have_the_dtype_of_the_ends(x64):
    keys = jax.random.split(jax.random.key(0), NUM_ROWS)
    for dtype in (jnp.float32, jnp.float64):
        t, x0, x1, _ = _inputs((2,), dtype)
        for time in (t, t.astype(jnp.float32)):
            for path in PATHS.values():
                point = jax.eval_shape(path.sample, keys, time, x0, x1)
                assert {leaf.dtype for leaf in jax.tree.leaves(point)} == {jnp.dtype(dtype)}
            for path in AFFINE.values():
                for convert in CONVERSIONS:
                    found = jax.eval_shape(functools.partial(convert, path), time, x0, x1)
                    assert (found.shape, found.dtype) == (x0.shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: paths.linear(floor=1.0), r"floor is 1\.0; it must lie in \[0, 1\)"),
        (lambda: paths.linear(floor=-0.1), r"floor is -0\.1"),
        (lambda: paths.variance_preserving(0.0, 20.0), r"beta_min is 0\.0"),
        (lambda: paths.variance_preserving(2.0, 1.0), r"beta_max is 1\.0"),
        (lambda: paths.with_constant_noise(paths.linear(), 0.0), r"noise is 0\.0; it must lie in \(0, inf\)"),
        (lambda: paths.with_constant_noise(paths.linear(), float("nan")), "noise is nan"),
        (lambda: paths.with_constant_noise(paths.brownian_bridge(1.0), 0.1), "noisy already"),
        (lambda: paths.brownian_bridge(-1.0), r"diffusion is -1\.0; it must lie in \(0, inf\)"),
    ],
)
def test_wrong_hyperparameters_are_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()


def test_paths_without_coefficients_refuse_conversions_and_say_why():
    t, x, value, _ = _inputs((2,), np.float32)
    for path in NOISY.values():
        for convert in CONVERSIONS:
            with pytest.raises(ValueError, match=r"no alpha and sigma .* bridge, or carries added noise"):
                convert(path, t, x, value)


def test_shape_errors_name_both_shapes(without_hook):
    t, x0, x1, noise = _inputs((2,), np.float32)
    keys = jax.random.split(jax.random.key(0), NUM_ROWS)
    for path in PATHS.values():
        with pytest.raises(ValueError, match=r"x1 has shape \(5, 1\), but x0 has shape \(5, 2\)"):
            path.sample(keys, t, x0, x1[:, :1])
        with pytest.raises(ValueError, match=r"t has shape \(3,\), but x0 has shape \(5, 2\)"):
            path.point(t[:3], x0, x1, _noise_for(path, noise))
        with pytest.raises(ValueError, match=r"t has shape \(\), but x0 has shape \(5, 2\)"):
            path.sample(keys, t[0], x0, x1)
        with pytest.raises(ValueError, match=r"key has shape \(\), but t has shape \(5,\)"):
            path.sample(keys[0], t, x0, x1)
    for path in NOISY.values():
        with pytest.raises(ValueError, match=r"noisy: give standard normal noise .* \(5, 2\)"):
            path.point(t, x0, x1, None)
        with pytest.raises(ValueError, match=r"noise has shape \(5, 1\), but x0 has shape \(5, 2\)"):
            path.point(t, x0, x1, noise[:, :1])
    for path in AFFINE.values():
        with pytest.raises(ValueError, match=r"noise has shape \(5, 2\), but this path is noise free"):
            path.point(t, x0, x1, noise)
        for convert in CONVERSIONS:
            with pytest.raises(ValueError, match=r"has shape \(5, 1\), but x has shape \(5, 2\)"):
                convert(path, t, x0, x1[:, :1])
