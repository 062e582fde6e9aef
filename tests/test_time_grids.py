"""Time grids: ends, growth of steps, the shift by hand, and the sampler on them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.drifts import from_function
from gft_jax.sampling import sample_ode, time_grids


@pytest.mark.parametrize("num_steps", [1, 3, 50])
def test_grids_run_from_exactly_noise_to_exactly_data(num_steps):
    uniform, cosine = time_grids.uniform(num_steps), time_grids.cosine(num_steps)
    for grid in (uniform, cosine, time_grids.shifted(uniform, 3.0), time_grids.shifted(cosine, 0.2)):
        assert grid.shape == (num_steps + 1,)
        assert grid[0] == 0.0
        assert grid[-1] == 1.0
        assert (np.diff(grid) > 0).all()
    np.testing.assert_allclose(uniform, np.arange(num_steps + 1) / num_steps, rtol=1e-15)
    np.testing.assert_allclose(cosine, 1 - np.cos(np.pi / 2 * uniform), atol=1e-15)
    assert (np.diff(cosine, 2) > 0).all()


def test_the_shift_by_hand_and_in_the_time_of_its_authors():
    np.testing.assert_allclose(time_grids.shifted([0.0, 0.5, 1.0], 3.0), [0.0, 0.25, 1.0], rtol=1e-15)
    times = time_grids.uniform(7)
    noise_level = 1 - times
    expected = 1 - 3 * noise_level / (1 + (3 - 1) * noise_level)
    np.testing.assert_allclose(time_grids.shifted(times, 3.0), expected, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(
        time_grids.shifted(time_grids.shifted(times, 2.0), 3.0), time_grids.shifted(times, 6.0)
    )
    np.testing.assert_array_equal(time_grids.shifted(times, 1.0), times)
    np.testing.assert_allclose(time_grids.shifted(times[::-1], 3.0), time_grids.shifted(times, 3.0)[::-1])


def test_a_shift_may_be_large_until_times_fall_together():
    times = [0.0, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(
        time_grids.shifted(times, 1e16), [0, 1e-16, 3e-16, 1], rtol=1e-12
    )  # t / (shift (1 - t))
    with pytest.raises(ValueError, match="shift is 1e-20; it moves different times"):
        time_grids.shifted(times, 1e-20)


def test_the_sampler_steps_along_the_grid_both_ways():
    """Euler's method for dx/dt = 2 t: the sum of left end points, in the order of integration."""
    drift = from_function(lambda t, x: 2 * t[:, None] * jnp.ones_like(x))
    for grid in (time_grids.cosine(6), time_grids.shifted(time_grids.uniform(6), 3.0)[::-1]):
        found = sample_ode(drift, None, jnp.zeros((2, 1)), times=grid, save_steps=True)
        np.testing.assert_allclose(found.times, grid, rtol=1e-6)
        steps = np.cumsum(2 * grid[:-1] * np.diff(grid))
        np.testing.assert_allclose(found.trajectory[1:, 0, 0], steps, rtol=1e-5)
        assert found.num_evaluations == 6


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (lambda: time_grids.uniform(0), "num_steps must be >= 1, got 0"),
        (lambda: time_grids.uniform(2.5), "num_steps must be an integer, got 2.5"),
        (lambda: time_grids.cosine(-1), "got -1"),
        (lambda: time_grids.shifted([0.0, 1.0], 0.0), "shift is 0.0"),
        (lambda: time_grids.shifted([0.0, 1.0], float("inf")), "shift is inf"),
        (lambda: time_grids.shifted([0.0], 2.0), r"at least two times.*shape \(1,\)"),
        (lambda: time_grids.shifted([0.0, 1.5], 2.0), "from 0.0 to 1.5"),
        (lambda: time_grids.shifted([0.0, float("nan"), 1.0], 2.0), r"in \[0, 1\]"),
        (lambda: time_grids.shifted([0.0, 0.6, 0.4, 1.0], 2.0), "0.6 followed by 0.4 at index 1"),
        (lambda: time_grids.shifted([1.0, 0.5, 0.5, 0.0], 2.0), "0.5 followed by 0.5 at index 1"),
        (lambda: time_grids.checked([0.0, 1.0 - 1e-9, 1.0], np.float32), "monotone in float32"),
    ],
)
def test_mistakes_are_named(grid, message, without_hook):
    with pytest.raises(ValueError, match=message):
        grid()
