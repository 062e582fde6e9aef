"""Steps by an average velocity, exact where the average is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import laws

import gft_jax as gft
from gft_jax.gaussian import average_velocity, monge_map
from gft_jax.sampling import sample_average, time_grids

LINEAR = gft.paths.linear()


def x0_of(num_rows=5):
    return gft.gaussian.sample(jax.random.key(0), laws()[0], num_rows)


def of_laws(cross=None):
    """The average velocity from noise to the target as a two-time drift that the parameters scale."""
    average = average_velocity(LINEAR, laws()[0], laws()[2], cross)
    return lambda params, t, s, x, cond=None: params * average(t, s, x)


def test_every_grid_ends_where_the_flow_does(x64):
    drift, x0 = of_laws(), x0_of()
    flow = x0 + drift(1.0, jnp.zeros(5), jnp.ones(5), x0)
    for settings in ({}, {"num_steps": 2}, {"num_steps": 8}, {"times": time_grids.cosine(4)}):
        sample = sample_average(drift, 1.0, x0, **settings)
        np.testing.assert_allclose(sample.x, flow, rtol=1e-10)
        num_steps = settings.get("num_steps", 4 if "times" in settings else 1)
        assert (int(sample.num_evaluations), bool(sample.succeeded), sample.trajectory) == (
            num_steps,
            True,
            None,
        )
    half = sample_average(drift, 1.0, x0, t1=0.5, num_steps=3)
    np.testing.assert_allclose(sample_average(drift, 1.0, half.x, t0=0.5).x, flow, rtol=1e-10)
    assert np.abs(sample_average(drift, 0.9, x0).x - flow).max() > 0.1  # power


def test_one_step_of_a_straight_flow_is_its_map(x64):
    source, _, target = laws()
    map_ = monge_map(source, target)
    drift, x0 = of_laws(map_.matrix @ source.cov), x0_of()
    expected = x0 @ map_.matrix.T + map_.offset
    np.testing.assert_allclose(sample_average(drift, 1.0, x0).x, expected, rtol=1e-10)
    start = jnp.zeros(5)
    np.testing.assert_allclose(x0 + drift(1.0, start, start, x0), expected, rtol=1e-10)  # one Euler step
    curved = of_laws()
    assert np.abs(x0 + curved(1.0, start, start, x0) - sample_average(curved, 1.0, x0).x).max() > 0.1


def test_trajectories_chunks_conditions_and_precision():
    def drift(params, t, s, x, cond=None):
        return params * x + cond[:, None] * (s - t)[:, None]

    x0, cond = jnp.ones((5, 2)), jnp.arange(5.0)
    sample = sample_average(drift, 0.5, x0, cond=cond, times=[0.0, 0.25, 1.0], save_steps=True)
    first = 1 + 0.25 * (0.5 + 0.25 * cond)
    last = first + 0.75 * (0.5 * first + 0.75 * cond)
    expected = np.broadcast_to(np.stack([np.ones(5), first, last])[..., None], (3, 5, 2))
    np.testing.assert_allclose(sample.trajectory, expected, rtol=1e-6)
    np.testing.assert_array_equal(sample.times, [0.0, 0.25, 1.0])
    np.testing.assert_array_equal(sample.trajectory[-1], sample.x)
    parts = sample_average(drift, 0.5, x0, cond=cond, times=[0.0, 0.25, 1.0], save_steps=True, chunk_size=2)
    np.testing.assert_allclose(parts.trajectory, expected, rtol=1e-6)
    assert isinstance(parts.x, np.ndarray)
    assert parts.num_evaluations.tolist() == [2] * 5
    half = sample_average(drift, 0.5, x0.astype(jnp.bfloat16), cond=cond)
    assert half.x.dtype == jnp.float32
    broken = sample_average(drift, jnp.nan, x0, cond=cond)
    assert not broken.succeeded


def test_what_cannot_be_sampled_is_refused():
    drift, x0 = (lambda params, t, s, x, cond=None: x), np.ones((3, 2))
    rows = [
        ({"t0": 1.0, "t1": 0.0}, r"from 1\.0 to 0\.0.*instantaneous"),
        ({"times": [1.0, 0.5, 0.0]}, r"from 1\.0 to 0\.0"),
        ({"times": [0.0, 0.5, 0.5]}, "strictly monotone"),
        ({"times": [0.0, 1.0], "num_steps": 2}, "give it alone"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"cond": np.ones(2)}, "one row for each of the 3"),
        ({"chunk_size": 0}, "chunk_size"),
    ]
    for settings, message in rows:
        with pytest.raises(ValueError, match=message):
            sample_average(drift, (), x0, **settings)
    with pytest.raises(ValueError, match=r"no second time.*two_time_params"):
        sample_average(lambda params, t, x, cond=None: x, (), x0)
