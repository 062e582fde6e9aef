"""Losses of the methods that raise a reward, written out in NumPy on one small problem.

Steps differ in length, rows have weights, drift and reward read the condition, the base is another function than the
drift, and one row has a reward without a gradient: none of these can be left out unseen.

A method is a function ``(params, prepared rows)`` -> loss and stats of each row, on paths of AWAY. Of the prepared rows
it reads only what was drawn at random.
"""

import jax
import jax.numpy as jnp
import numpy as np
from reward_toy import AWAY, BASE, LAM, network

from gft_jax.pairing import row_keys

GRID = np.array([0.0, 0.15, 0.4, 0.55, 1.0])
LATE = np.array([0.2, 0.3, 0.55, 0.7, 1.0])
COND = np.array([0.3, -1.0, 0.6, 1.5, -0.4])
WEIGHT = np.array([0.5, 2.0, 1.0, 0.7, 3.0])
X0, X1 = np.random.default_rng(0).normal(size=(2, 5, 2))
TEMPERATURE = 0.6
MEAN, SHARPNESS, LARGEST_EXPONENT = 0.1, 0.7, 0.05
"""Of reward weighting: the running mean of the reward, tau, and the cap of the exponent."""
THRESHOLD = 0.9
"""Of the clip."""


def base_drift(params, t, x, cond):
    return network(params, t, x, -cond) - 0.5 * x


def reward(x, cond):
    wavy = jnp.sin(x[:, 0] + cond) * x[:, 1] - 0.3 * jnp.sum(x**2, axis=1)
    return jnp.where(cond > 1, cond, wavy)


# The same in NumPy, with derivatives by hand


def hidden(params, t, x):
    return np.tanh(x @ params["first"] + np.multiply.outer(t, params["time"]))


def velocity_at(params, t, x):
    return hidden(params, t, x) @ params["last"] + COND[:, None]


def base_at(t, x):
    return hidden(BASE, t, x) @ BASE["last"] - COND[:, None] - 0.5 * x


def pulled(t, x, adjoint):
    """``[dv_base/dx]^T a``."""
    inner = (adjoint @ BASE["last"].T) * (1 - hidden(BASE, t, x) ** 2)
    return inner @ BASE["first"].T - 0.5 * adjoint


def reward_at(x):
    return np.where(COND > 1, COND, np.sin(x[:, 0] + COND) * x[:, 1] - 0.3 * squared(x))


def reward_slope(x):
    sine, cosine = np.sin(x[:, 0] + COND), np.cos(x[:, 0] + COND)
    slope = np.stack([cosine * x[:, 1], sine], axis=1) - 0.6 * x
    return np.where(COND[:, None] > 1, 0.0, slope)


def squared(x):
    return np.sum(x**2, axis=1)


def norm(x):
    return np.sqrt(squared(x))


def euler_path():
    states = [X0]
    for t, h in zip(GRID[:-1], np.diff(GRID), strict=True):
        states.append(states[-1] + h * velocity_at(AWAY, t, states[-1]))
    return states


def end_stats(x):
    slope = reward_slope(x)
    return {"reward": reward_at(x), "reward_gradient_norm": norm(slope), "zero_gradient": COND > 1}


# The methods


def adjoint_matching_by_euler(params, rows):
    """Of the last three of four steps."""
    states = euler_path()
    adjoint = reward_slope(states[-1])
    loss, size, largest = 0.0, 0.0, norm(adjoint)
    for k in (3, 2, 1):
        t, x, h = GRID[k], states[k], GRID[k + 1] - GRID[k]
        control = velocity_at(params, t, x) - base_at(t, x)
        loss += h * squared(control - adjoint / LAM) / (1 - GRID[1])
        size += h * squared(control) / (1 - GRID[1])
        adjoint = adjoint + h * pulled(t, x, adjoint)
        largest = np.maximum(largest, norm(adjoint))
    found = {"loss": loss, "matching_loss": loss, "squared_control": size, "adjoint_norm": largest}
    return found | end_stats(states[-1])


def adjoint_matching_by_heun(params, rows):
    """Of the last two of four steps, with the weights of the trapezoidal rule."""
    states = [X0]
    for t, h in zip(GRID[:-1], np.diff(GRID), strict=True):
        x = states[-1]
        first = velocity_at(AWAY, t, x)
        states.append(x + 0.5 * h * (first + velocity_at(AWAY, t + h, x + h * first)))
    adjoints = {4: reward_slope(states[-1])}
    for k in (3, 2):
        t, x, h = GRID[k], states[k], GRID[k + 1] - GRID[k]
        second = pulled(t + h, x + h * base_at(t, x), adjoints[k + 1])
        both = pulled(t, x, adjoints[k + 1]) + second + h * pulled(t, x, second)
        adjoints[k] = adjoints[k + 1] + 0.5 * h * both
    loss = size = 0.0
    for k, length in ((2, 0.15 / 2), (3, 0.6 / 2), (4, 0.45 / 2)):
        control = velocity_at(params, GRID[k], states[k]) - base_at(GRID[k], states[k])
        loss += length / 0.6 * squared(control - adjoints[k] / LAM)
        size += length / 0.6 * squared(control)
    largest = np.max([norm(adjoint) for adjoint in adjoints.values()], axis=0)
    found = {"loss": loss, "matching_loss": loss, "squared_control": size, "adjoint_norm": largest}
    return found | end_stats(states[-1])


@jax.jit
def increments():
    """Noise of the four steps of the memoryless process ``[steps, rows, 2]``."""
    keys = jax.vmap(jax.random.split)(row_keys(0, 0, 5))[:, 0]
    return jax.vmap(
        lambda k: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), (2,), float))(keys)
    )(jnp.arange(4))


def memoryless(params, num_trained, rate, eta, threshold):
    """``rate = alpha' / alpha``; of the last steps."""
    noise, states = np.asarray(increments()), [X0]
    for k, (t, h) in enumerate(zip(LATE[:-1], np.diff(LATE), strict=True)):
        x = states[-1]
        drift = 2 * velocity_at(AWAY, t, x) - rate(t) * x
        states.append(x + h * drift + np.sqrt(2 * eta(t) * h) * noise[k])
    slope = reward_slope(states[-1])
    size = norm(slope)
    assert threshold == np.inf or 0 < np.sum(size > threshold) < np.sum(size > 0)  # the clip has work to do
    adjoint = slope * np.minimum(1, threshold / np.where(size > 0, size, 1))[:, None] / LAM
    steps = range(4 - num_trained, 4)
    lengths, used = np.diff(LATE), 1 - LATE[steps[0]]
    loss, price, total, largest = 0.0, 0.0, 0.0, norm(adjoint)
    for k in reversed(steps):
        t, x, h, g = LATE[k], states[k], lengths[k], np.sqrt(2 * eta(LATE[k]))
        control = velocity_at(params, t, x) - base_at(t, x)
        loss += h * squared(2 / g * control - g * adjoint) / used
        price, total = price + h / g**2 * squared(control), total + h / g**2
        adjoint = adjoint + h * (2 * pulled(t, x, adjoint) - rate(t) * adjoint)
        largest = np.maximum(largest, norm(adjoint))
    found = {"loss": loss, "matching_loss": loss, "squared_control": price / total, "adjoint_norm": largest}
    if threshold < np.inf:
        found["unclipped"] = size <= threshold
    return found | end_stats(states[-1])


def memoryless_on_the_linear_path(params, rows):
    return memoryless(params, 4, lambda t: 1 / t, lambda t: (1 - t) / t, np.inf)


def memoryless_on_the_trigonometric_path(params, rows):
    """``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``; of the last two steps, with a clip."""

    def cotangent(t):
        return np.pi / 2 / np.tan(np.pi / 2 * t)

    return memoryless(params, 2, cotangent, cotangent, THRESHOLD)


def draft(params, rows):
    """Differentiated through the last two of four steps."""
    x, price, size = euler_path()[2], 0.0, 0.0
    for t, h in ((0.4, 0.15), (0.55, 0.45)):
        velocity = velocity_at(params, t, x)
        control = velocity - base_at(t, x)
        price, size = price + h * squared(control) / 2, size + squared(control) / 2
        x = x + h * velocity
    return {"loss": LAM * price - reward_at(x), "reward": reward_at(x), "squared_control": size}


def refl(params, rows):
    """A jump from one of the last three of four steps."""
    index = np.searchsorted(GRID, np.asarray(rows.jump))
    assert set(index) == {1, 2, 3}
    t, x = GRID[index], np.stack(euler_path())[index, np.arange(5)]
    values = reward_at(x + (1 - t)[:, None] * velocity_at(params, t, x))
    return {"loss": -values, "reward": values}


def strength(t):
    return 0.2 + t**3


def value_guidance(params, rows):
    states = euler_path()
    loss = size = gradient_norm = 0.0
    for t, h, x in zip(GRID[:-1], np.diff(GRID), states[:-1], strict=True):
        slope = reward_slope(x + (1 - t) * velocity_at(AWAY, t, x))
        control = velocity_at(params, t, x) - base_at(t, x)
        loss += h * squared(control - strength(t) / LAM * slope)
        size, gradient_norm = size + h * squared(control), gradient_norm + norm(slope) / 4
    found = {"loss": loss, "matching_loss": loss, "squared_control": size}
    return found | {"reward": reward_at(states[-1]), "reward_gradient_norm": gradient_norm}


def reward_weighted(params, rows):
    """With ``x - t u`` of a drawn point on a straight path, which is its noise."""
    t = np.asarray(rows.path.t)
    x0 = np.asarray(rows.path.x - t[:, None] * rows.path.velocity)
    x1 = euler_path()[-1]
    x = (1 - t)[:, None] * x0 + t[:, None] * x1
    exponent = SHARPNESS * (reward_at(x1) - MEAN)
    assert 0 < np.sum(exponent > LARGEST_EXPONENT) < 5  # the cap has work to do
    preference = np.exp(np.minimum(exponent, LARGEST_EXPONENT))
    velocity = velocity_at(params, t, x)
    of_base = hidden(BASE, t, x) @ BASE["last"] + COND[:, None]
    error, distance = squared(velocity - (x1 - x0)), squared(velocity - of_base)
    found = {"flow_matching_loss": error, "base_distance": distance, "preference": preference}
    return found | {"loss": preference * error + 0.3 * distance, "reward": reward_at(x1)}


def terminal(params, rows):
    """With the log-ratio ``x_1 - |x|^2 / 5``, from rows of the target."""
    t = np.asarray(rows.path.t)
    velocity = velocity_at(params, t, (1 - t)[:, None] * X0 + t[:, None] * X1)
    error = strength(t) * squared(velocity - (X1 - X0))
    ratio = np.exp(-(TEMPERATURE / (1 + TEMPERATURE)) * (X1[:, 0] - squared(X1) / 5))
    found = {"loss": error, "flow_matching_loss": error}
    return found | {"ratio_weight": ratio, "inverse_ratio_weight": 1 / ratio}
