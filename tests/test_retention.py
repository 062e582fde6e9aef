import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.metrics import velocity_distance


def test_velocity_distance_is_the_root_of_the_mean_squared_norm(without_hook):
    def drift(params, t, x, cond=None):
        return x + params * t[:, None, None]

    x, t = jnp.ones((4, 2, 3)), jnp.arange(4.0)
    found = velocity_distance(drift, 2.0, x, t, x)
    assert float(found) == pytest.approx(np.sqrt(6 * np.mean((2.0 * np.arange(4)) ** 2)))
    assert float(velocity_distance(drift, 0.0, x, t, x)) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        velocity_distance(drift, 0.0, x[:, :1], t, x)
    with pytest.raises(ValueError, match=r"one point or more, got x of shape \(0, 2, 3\)"):
        velocity_distance(drift, 0.0, x[:0], t[:0], x[:0])
