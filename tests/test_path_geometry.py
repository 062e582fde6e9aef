import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import normal, z_score
from scipy.stats import norm

from gft_jax.metrics import (
    kinetic_energy,
    normalised_path_energy,
    path_length,
    pixel_path_length,
    spearman,
    straightness,
    velocity_variance,
    w2,
)
from gft_jax.sampling import sample_ode, time_grids


def test_path_length_of_straight_lines_is_the_distance_of_their_ends():
    times = np.linspace(0, 1, 6, dtype=np.float32) ** 2
    for event in ((), (4,), (2, 3), (2, 2, 3)):
        start, end = normal(2, 5, *event).astype(np.float32)
        trajectory = start + times.reshape(-1, *[1] * start.ndim) * (end - start)
        expected = np.linalg.norm((end - start).reshape(5, -1), axis=1)
        lengths = path_length(trajectory)
        assert lengths.dtype == jnp.float32
        np.testing.assert_allclose(lengths, expected, rtol=2e-6)


def test_path_length_of_a_circle(x64):
    num_steps, radius = 100, np.array([1.0, 2.5])
    angle = np.linspace(0, 2 * np.pi, num_steps + 1)[:, None]
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    lengths = jax.jit(path_length)(circle)
    assert lengths.dtype == jnp.float64
    np.testing.assert_allclose(lengths, radius * num_steps * 2 * np.sin(np.pi / num_steps), rtol=1e-12)
    # The polygon is shorter than the circle by pi^2 / (6 num_steps^2).
    np.testing.assert_allclose(1 - lengths / (2 * np.pi * radius), np.pi**2 / 6 / num_steps**2, rtol=1e-3)


def test_steps_of_numpy_paths_are_taken_in_their_own_precision():
    """A straight line of length 5 so far from the origin that float32 rounds its states to whole numbers."""
    times = np.linspace(0, 1, 11)
    trajectory = 1e7 + times[:, None, None] * np.array([[3.0, 4.0]])
    np.testing.assert_allclose(path_length(trajectory), 5, rtol=1e-6)
    np.testing.assert_allclose(pixel_path_length(trajectory[:, :, None]), 5, rtol=1e-6)
    energy, wasted = kinetic_energy(trajectory, times), straightness(trajectory, times)
    np.testing.assert_allclose(energy, 25, rtol=1e-6)
    np.testing.assert_allclose(wasted, 0, atol=1e-6)
    assert path_length(jnp.asarray(trajectory))[0] > 5.5  # power


def test_path_length_keeps_samples_apart():
    trajectory = np.zeros((3, 3, 2), np.float32)
    trajectory[1, 1] = 3, 4  # there and back
    trajectory[2, 2, 0] = np.nan
    np.testing.assert_array_equal(path_length(trajectory), [0, 10, np.nan])
    with pytest.raises(ValueError, match=r"at least two states, start included, got shape \(1, 3, 2\)"):
        path_length(trajectory[:1])


def test_pixel_path_length_takes_the_norm_over_colours_and_sums_over_pixels():
    trajectory = normal(5, 3, 2, 2, 3).astype(np.float32)
    expected = np.sum(np.sqrt(np.sum(np.diff(trajectory, axis=0) ** 2, axis=-1)), axis=(0, 2, 3))
    np.testing.assert_allclose(pixel_path_length(trajectory), expected, rtol=1e-6)
    # Where all four pixels move alike it is longer by the root of their number.
    alike = np.broadcast_to(trajectory[:, :, :1, :1], trajectory.shape)
    np.testing.assert_allclose(pixel_path_length(alike), 2 * path_length(alike), rtol=1e-6)
    vectors = trajectory.reshape(5, 3, 12)
    np.testing.assert_allclose(pixel_path_length(vectors), path_length(vectors), rtol=1e-6)
    with pytest.raises(ValueError, match=r"\[num_steps \+ 1, batch, \*pixels, colours\], got shape \(5, 3\)"):
        pixel_path_length(trajectory[..., 0, 0, 0])


@jax.jit
def energy_and_straightness(trajectory, times):
    """Both in one program: compilation is what costs."""
    return kinetic_energy(trajectory, times), straightness(trajectory, times)


def test_energy_and_straightness_of_exponential_flow(x64):
    """dx/dt = a x: |v|^2 = a^2 |x0|^2 e^(2 a t); the polygon's energy is below by a relative O(num_steps^-2)."""
    a, x0 = 0.7, normal(4, 2, 3)
    square = np.sum(x0**2, axis=(1, 2))
    energy = square * a * (math.exp(2 * a) - 1) / 2
    wasted = energy - square * (math.exp(a) - 1) ** 2
    errors = []
    for num_steps in (20, 40):
        times = np.linspace(0, 1, num_steps + 1) ** 1.5  # steps of unlike duration, as of an adaptive solver
        found_energy, found_wasted = energy_and_straightness(
            np.exp(a * times)[:, None, None, None] * x0, times
        )
        errors.append([1 - found_energy / energy, 1 - found_wasted / wasted])
        np.testing.assert_allclose(found_wasted, found_energy - square * (math.exp(a) - 1) ** 2, rtol=1e-9)
    assert np.all(np.array(errors) > 0)
    np.testing.assert_allclose(np.divide(*errors), 4, rtol=0.02)
    assert np.max(errors[1]) < 0.01


def test_straight_lines_waste_nothing():
    start, end = normal(2, 5, 3)
    # Backwards, in steps of unlike duration, and with places at the end that were not needed.
    times = np.array([1, 0.4, 0.1, 0, 0, 0])
    trajectory = start + times[:, None, None] * (end - start)
    square = np.sum((end - start) ** 2, axis=1)
    energy, wasted = energy_and_straightness(trajectory, times)
    np.testing.assert_allclose(energy, square, rtol=1e-5)
    np.testing.assert_allclose(wasted, 0, atol=1e-5)
    # The same line, run through at another speed.
    uneven = start + (times**2)[:, None, None] * (end - start)
    excess = np.sum(np.diff(times[:4] ** 2) ** 2 / -np.diff(times[:4])) - 1
    energy, wasted = energy_and_straightness(uneven, times)
    np.testing.assert_allclose(energy, (1 + excess) * square, rtol=1e-5)
    np.testing.assert_allclose(wasted, excess * square, rtol=1e-5)
    # A jump in no time has no finite energy.
    trajectory[-1] += 1
    assert not np.isfinite(energy_and_straightness(trajectory, times)).any()


def test_velocity_variance_by_step():
    # One path rests and then moves, the other has a constant speed: deviations (-1, 1) from the mean velocity, and 0.
    times = np.array([0.0, 0.5, 1.0])
    trajectory = np.array([[0.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    np.testing.assert_allclose(velocity_variance(trajectory, times), [0.5, 0.5])
    repeated = velocity_variance(trajectory[[0, 1, 1]], times[[0, 1, 1]])
    np.testing.assert_allclose(repeated, [0, np.nan], atol=1e-6)


def test_places_that_were_not_needed_do_not_count_in_the_trend_of_the_velocity_variance():
    """Along ``t^3`` the speed is farthest from its mean at the end; an adaptive solve repeats its last place."""
    times = np.concatenate([np.linspace(0, 1, 6), [1, 1]])
    trajectory = times[:, None, None] ** 3 * np.ones((2, 1))
    curve, counts = velocity_variance(trajectory, times), np.diff(times) != 0
    np.testing.assert_array_equal(np.isnan(curve), ~counts)
    expected = spearman(times[1:6], velocity_variance(trajectory[:6], times[:6]))
    assert spearman(times[1:][counts], curve[counts]) == expected > 0


def test_the_mean_velocity_variance_is_the_mean_straightness():
    """Velocities 3 + r, 3 - r with r = 1, 1, 2, 2, ...: the paths bend more and more."""
    r = np.repeat(np.arange(1.0, 11), 2)
    velocity = 3 + r * np.tile([1, -1], 10)
    times = np.arange(21) / 20
    x0 = normal(6, 2)
    trajectory = x0 * (1 + np.concatenate([[0], np.cumsum(velocity)]) / 20)[:, None, None]
    curve = np.asarray(velocity_variance(trajectory, times))
    np.testing.assert_allclose(curve, r**2 * np.mean(np.sum(x0**2, axis=1)), rtol=1e-3)
    np.testing.assert_allclose(np.mean(curve), np.mean(straightness(trajectory, times)), rtol=1e-5)
    assert spearman(times[1:], curve) > 0.98
    assert spearman(times[1:], curve[::-1]) < -0.98


def test_normalised_path_energy_of_an_optimal_flow_is_zero():
    """Straight paths x0 -> A x0 + b, optimal for positive definite A: W2^2 = |A - 1|^2 + |b|^2 from N(0, 1)."""
    matrix, offset = np.array([[1.4, 0.3], [0.3, 0.7]]), np.array([1.0, -1.0])
    x0 = normal(4000, 2)
    times = np.linspace(0, 1, 5)
    trajectory = x0 + times[:, None, None] * (x0 @ matrix + offset - x0)
    energies = np.asarray(kinetic_energy(trajectory, times))
    distance = math.sqrt(np.sum((matrix - np.eye(2)) ** 2) + np.sum(offset**2))
    assert abs(z_score(energies, distance**2)) < 3
    error = np.std(energies) / np.sqrt(4000) / distance**2
    assert normalised_path_energy(energies, distance) < 3 * error < 0.1
    assert normalised_path_energy(energies, 0.9 * distance) > 3 * error
    # A flow that stops half-way has a quarter of the energy: a deficit, which counts as well.
    np.testing.assert_allclose(normalised_path_energy(energies / 4, distance), 0.75, atol=3 * error)


def test_normalised_path_energy_of_the_samplers_paths_and_the_w2_of_the_samples():
    """From quantiles of N(0, 1) to those of N(m, s^2): the optimal, straight flow, and that of independent pairs."""
    m, s = 1.0, 3.0
    x0 = norm.ppf((np.arange(100) + 0.5) / 100)[:, None]
    data = m + s * np.random.default_rng(0).permutation(x0)

    def energy(slope):
        """Of ``v = m + slope(t) (x - t m)``."""
        sample = sample_ode(
            lambda params, t, x, cond=None: m + slope(t)[:, None] * (x - t[:, None] * m),
            None,
            jnp.asarray(x0, jnp.float32),
            times=time_grids.uniform(100),
            solver=diffrax.Midpoint(),
            save_steps=True,
        )
        return normalised_path_energy(kinetic_energy(sample.trajectory, sample.times), w2(x0, data))

    assert energy(lambda t: (s - 1) / (1 + t * (s - 1))) < 1e-4
    # Here x_t = m t + r(t) x0 with r^2 = (1 - t)^2 + (s t)^2, and int r'^2 = 10 - 3 pi / 2 for s = 3.
    square = np.mean(x0**2)
    excess = square * (10 - 1.5 * np.pi - (s - 1) ** 2) / (m**2 + square * (s - 1) ** 2)
    found = energy(lambda t: (t * s**2 - (1 - t)) / ((1 - t) ** 2 + (t * s) ** 2))
    np.testing.assert_allclose(found, excess, rtol=1e-3)
    assert excess > 0.2


def test_normalised_path_energy_of_an_independent_coupling():
    """N(0, 1) to N(m, 1), linear path: x_t = m t + s(t) x0, s^2 = t^2 + (1 - t)^2, excess int s'^2 = 2 - pi / 2."""
    m, x0 = 2.0, normal(4000)
    times = np.linspace(0, 1, 101)
    trajectory = m * times[:, None] + np.sqrt(times**2 + (1 - times) ** 2)[:, None] * x0
    # W2 of the laws is m. The energy's own cross term vanishes in the mean: s starts and ends at 1.
    expected = (2 - np.pi / 2) / m**2
    energies = np.asarray(kinetic_energy(trajectory, times))
    assert abs(z_score(energies / m**2 - 1, expected)) < 3
    np.testing.assert_allclose(normalised_path_energy(energies, m), np.mean(energies) / m**2 - 1, rtol=1e-6)
    assert abs(z_score(energies / m**2 - 1, 1.1 * expected)) > 3


def test_path_geometry_checks_what_it_is_given(without_hook):
    trajectory, times = np.zeros((3, 2, 4)), np.linspace(0, 1, 3)
    for metric in (kinetic_energy, straightness, velocity_variance):
        with pytest.raises(ValueError, match=r"times must have shape \(3,\).* got shape \(2,\)"):
            metric(trajectory, times[:2])
        with pytest.raises(ValueError, match=r"at least two states, start included, got shape \(1, 2, 4\)"):
            metric(trajectory[:1], times[:1])
    for metric in (path_length, pixel_path_length):
        with pytest.raises(ValueError, match=r"trajectory must be an array \[num_steps .* got a list: stack"):
            metric(list(trajectory))
    with pytest.raises(ValueError, match=r"times must be an array \[num_steps \+ 1\], got a tuple"):
        kinetic_energy(trajectory, tuple(times))
    trajectory[1, 1] = np.nan
    np.testing.assert_array_equal(np.isfinite(kinetic_energy(trajectory, times)), [True, False])
    with pytest.raises(ValueError, match=r"1 of 2 samples in energies are not finite \(first rows: \[1\]\)"):
        normalised_path_energy(kinetic_energy(trajectory, times), 1.0)
    with pytest.raises(ValueError, match=r"energies has 0 samples"):
        normalised_path_energy(np.zeros(0), 1.0)
    for distance in (0.0, math.nan):
        with pytest.raises(ValueError, match=r"w2 must be positive and finite"):
            normalised_path_energy(np.ones(2), distance)
