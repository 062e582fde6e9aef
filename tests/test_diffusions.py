"""Noise levels: closed forms, the ends, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax import diffusions, paths


def test_eta_and_memoryless_have_their_closed_forms(x64):
    t = np.linspace(0.05, 0.95, 10)
    angle = np.pi / 2 * t
    half_rate = (0.1 + 19.9 * (1 - t)) / 2
    closed_forms = [
        (paths.linear(), (1 - t) / t),
        (paths.linear(floor=0.05), (1 - 0.95 * t) / t),
        (paths.trigonometric(), np.pi / 2 / np.tan(angle)),
        # sigma^2 alpha'/alpha - sigma sigma' with sigma sigma' = -alpha alpha' and sigma^2 + alpha^2 = 1
        (paths.variance_preserving(), half_rate),
    ]

    @jax.jit
    def found(t):
        return [(diffusions.eta(path, t), diffusions.memoryless(path)(t)) for path, _ in closed_forms]

    for (eta, noise_level), (_, expected) in zip(found(t), closed_forms, strict=True):
        np.testing.assert_allclose(eta, expected, rtol=1e-12)
        np.testing.assert_allclose(noise_level, np.sqrt(2 * expected), rtol=1e-12)
    cosine, sine = np.cos(angle), np.sin(angle)
    definition = cosine * (cosine * (np.pi / 2 * cosine / sine) + np.pi / 2 * sine)
    np.testing.assert_allclose(closed_forms[2][1], definition, rtol=1e-12)


def test_memoryless_at_the_ends_is_infinite_and_zero():
    ends = jnp.array([0.0, 1.0])
    for path in (paths.linear(), paths.trigonometric()):
        np.testing.assert_array_equal(diffusions.memoryless(path)(ends), [np.inf, 0.0])
    floor = diffusions.memoryless(paths.linear(floor=0.05))(ends)
    np.testing.assert_allclose(floor, [np.inf, np.sqrt(0.1)], rtol=1e-6)
    start, end = diffusions.memoryless(paths.variance_preserving())(ends)
    np.testing.assert_allclose(start, np.sqrt(20.0), rtol=1e-4)
    assert np.isnan(end)


def test_noise_levels_keep_shape_and_dtype(x64):
    for dtype in (jnp.float32, jnp.float64):
        t = jnp.array([0.2, 0.9], dtype)
        np.testing.assert_array_equal(
            diffusions.constant(0.75)(t), np.array([0.75, 0.75], dtype), strict=True
        )
        for path in (paths.linear(floor=0.05), paths.trigonometric(), paths.variance_preserving()):
            found = jax.eval_shape(diffusions.memoryless(path), t)
            assert (found.shape, found.dtype) == (t.shape, t.dtype)


def test_wrong_hyperparameters_are_refused():
    for level in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"noise level is {level}; it must lie in \[0, inf\)"):
            diffusions.constant(level)
    for path in (paths.brownian_bridge(1.0), paths.with_constant_noise(paths.linear(), 0.1)):
        with pytest.raises(ValueError, match="no memoryless noise level"):
            diffusions.memoryless(path)
        with pytest.raises(ValueError, match="no alpha and sigma"):
            diffusions.eta(path, jnp.array([0.5]))
