"""Rewards: values and gradients against NumPy, the check of a reward, and rewards from outside of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from gft_jax import rewards

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
WEIGHTS = np.random.default_rng(1).normal(size=(40, 3))
LABELS = np.array([2, 0, 1])


def logits(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS.astype(x.dtype)


def log_probability(x, labels):
    return log_softmax(x.reshape(3, -1) @ WEIGHTS, axis=-1)[np.arange(3), labels]


def minus_neighbours(x):
    down, right = ((x[:, 1:] - x[:, :-1]) ** 2, (x[:, :, 1:] - x[:, :, :-1]) ** 2)
    return -down.mean(axis=(1, 2, 3)) - right.mean(axis=(1, 2, 3))


REWARDS = {
    "quadratic": (rewards.quadratic(0.5, 3), lambda x: -1.5 * ((x - 0.5) ** 2).sum(axis=(1, 2, 3))),
    "quadratic, centre an event": (
        rewards.quadratic(IMAGES[0]),
        lambda x: -0.5 * ((x - IMAGES[0]) ** 2).sum(axis=(1, 2, 3)),
    ),
    "class": (rewards.class_log_probability(logits, 1), lambda x: log_probability(x, 1)),
    "class of the condition": (rewards.class_log_probability(logits), lambda x: log_probability(x, LABELS)),
    "scaled": (rewards.scaled(rewards.brightness, -2), lambda x: -2 * x.mean(axis=(1, 2, 3))),
    "brightness": (rewards.brightness, lambda x: x.mean(axis=(1, 2, 3))),
    "colour": (rewards.colour(1), lambda x: x[..., 1].mean(axis=(1, 2)) - x[..., 0].mean(axis=(1, 2))),
    "smoothness": (rewards.smoothness, minus_neighbours),
}


def test_values_and_gradients_against_numpy(x64):
    """The gradients by central differences, and the whole inside of jit."""

    @jax.jit
    def of_all(x, cond):
        return {name: rewards.value_and_gradient(reward, x, cond) for name, (reward, _) in REWARDS.items()}

    step = 1e-5
    for name, (values, gradient) in jax.device_get(of_all(jnp.asarray(IMAGES), LABELS)).items():
        formula = REWARDS[name][1]
        np.testing.assert_allclose(values, formula(IMAGES), rtol=1e-12, err_msg=name)
        numerical = np.empty((3, 40))
        for entry in range(40):
            move = step * np.eye(40)[entry].reshape(4, 5, 2)
            numerical[:, entry] = (formula(IMAGES + move) - formula(IMAGES - move)) / (2 * step)
        assert np.abs(numerical).max() > 1e-3
        np.testing.assert_allclose(gradient.reshape(3, 40), numerical, rtol=1e-7, atol=1e-9, err_msg=name)


def test_the_most_colourful_the_flattest_and_grey_images():
    """Values that follow from the words: a colour against the mean of the others, no reward for a flat image."""
    image = jnp.zeros((2, 3, 3, 3)).at[0, ..., 2].set(1.0).at[1].set(0.7)
    np.testing.assert_allclose(rewards.colour(2)(image), [1, 0], atol=1e-6)
    np.testing.assert_allclose(rewards.colour(0)(image), [-0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(rewards.smoothness(image), [0, 0])
    np.testing.assert_allclose(rewards.colour(0)(image[:, 0, 0]), [-0.5, 0], atol=1e-6)  # no axes of pixels


def test_every_reward_here_passes_its_check():
    for reward, _ in REWARDS.values():
        rewards.check(reward, IMAGES.astype(np.float32), jnp.asarray(LABELS))


X = np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32)
JX = jnp.asarray(X)


def infinite_in_two_rows(x, cond=None):
    return jnp.where(jnp.isin(jnp.arange(len(x)), jnp.array([1, 4])), -jnp.inf, 1.0) * jnp.sum(x**2, axis=1)


def in_numpy(x, cond=None):
    return np.sum(np.sin(np.asarray(x)), axis=1)


def in_a_loop(x, cond=None):
    doubled = jax.vmap(lambda s: jax.lax.while_loop(lambda s: s < 10, lambda s: 2 * s, s))
    return doubled(jnp.sum(x**2, axis=1) + 1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x, cond=None: x, r"one value a row, shape \(6,\) for samples of shape \(6, 2\).*\(6, 2\)"),
        (lambda x, cond=None: jnp.sum(x), r"one value a row.* shape \(\)"),
        (lambda x: jnp.sum(x, axis=1), r"called as reward\(x, cond\).*write it with a second argument"),
        (lambda x, cond=None: jnp.sum(x > 0, axis=1), "int32, which have no gradient: .*reward_weighted"),
        (lambda x, cond=None: jnp.sum(x, axis=1) > 0, "bool, which have no gradient: .*from_host"),
        (lambda x, cond=None: jnp.sum(x, axis=1) + 1j, "complex64"),
        (infinite_in_two_rows, r"values are not finite in 2 of 6 rows \(the first: \[1, 4\]\): bound"),
        (
            lambda x, cond=None: jnp.sqrt(jnp.sum((x - X[3]) ** 2, axis=1)),
            r"gradients are not finite in 1 of 6 rows \(the first: \[3\]\)",
        ),
        (lambda x, cond=None: jnp.sum(jnp.round(x), axis=1), "zero in all 6 rows: .*reward_weighted"),
        (lambda x, cond=None: jnp.argmax(x, axis=1) * 1.0, "zero in all 6 rows: .*from_host"),
        (in_numpy, r"cannot trace and differentiate it \(TracerArrayConversionError.*from_host"),
        (
            lambda x, cond=None: x[:, 0] if x[0, 0] > 0 else x[:, 1],
            r"it \(TracerBoolConversionError.*from_host",
        ),
        (in_a_loop, r"cannot trace and differentiate it \(ValueError.*from_host"),
        (lambda x, cond=None: x[:, 0] - jnp.mean(x[:, 0]), "depends on the other rows"),
        (lambda x, cond=None: 1e-5 * x[:, 0] * jnp.mean(x[:, 0]), "depends on the other rows"),
        (
            lambda x, cond=None: (x[:, 0] - jnp.mean(x[:, 0])) / jnp.std(x[:, 0]),
            "depends on the other rows: .* nan alone",
        ),
        (
            lambda x, cond=None: x[:, 0] / jax.lax.stop_gradient(jnp.max(jnp.abs(x[:, 0]))),
            "depends on the other rows",
        ),
        (lambda x, cond=None: -jnp.sum((x - x[:1]) ** 2, axis=1), "depends on the other rows"),
        (lambda x, cond=None: jnp.cumsum(x[:, 0]), "depends on the other rows"),
        (lambda x, cond=None: x[:, 0] + 1e-5 * x[0, 0] * x[:, 1] ** 2, "depends on the other rows"),
    ],
)
def test_a_reward_that_cannot_train_is_refused_and_the_fault_is_named(reward, message):
    with pytest.raises(ValueError, match=message):
        rewards.check(reward, X)


def test_the_check_leaves_good_rewards_and_their_own_errors_alone():
    rewards.check(
        lambda x, cond=None: jnp.sum(jnp.maximum(x, 0), axis=1) + cond["shift"], X, {"shift": X[:, 1]}
    )
    rewards.check(lambda x, cond=None: 1e-6 * jnp.sum(x, axis=1), X[:1])

    def broken(x, cond=None):
        raise KeyError("no such file")

    with pytest.raises(KeyError, match="no such file"):
        rewards.check(broken, X)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x, cond=None: jnp.sum(x), "one value a row"),
        (lambda x, cond=None: jnp.log(x[:, 0]), "values are not finite in"),
        (
            lambda x, cond=None: 1 / (jnp.arange(len(x)) % 3),
            r"not finite in 2 of 6 rows \(the first: \[0, 3\]\)",
        ),
        (lambda x, cond=None: jnp.full(len(x), -jnp.inf), "is -inf in all 6 rows, so that none is preferred"),
        (lambda x, cond=None: jnp.ones(len(x), int), r"is 1.0 in all 6 rows, so that none is preferred"),
        (lambda x, cond=None: jnp.argsort(x[:, 0]), "depends on the other rows"),
        (lambda x, cond=None: jnp.cumsum(x[:, 0] > 0), "depends on the other rows"),
        (in_numpy, r"cannot trace and differentiate it \(TracerArrayConversionError.*from_host"),
    ],
)
def test_a_reward_without_use_is_refused_also_where_no_gradient_is_taken(reward, message):
    with pytest.raises(ValueError, match=message):
        rewards.check(reward, X, needs_gradient=False)


def test_where_no_gradient_is_taken_a_reward_may_count_and_forbid():
    rewards.check(lambda x, cond=None: jnp.sum(x > 0, axis=1), X, needs_gradient=False)
    rewards.check(in_a_loop, X, needs_gradient=False)

    def forbids(x, cond=None):
        return jnp.where(x[:, 0] > 0, -jnp.inf, jnp.sum(x > 0, axis=1))

    rewards.check(forbids, X, needs_gradient=False)
    with pytest.raises(ValueError, match="values are not finite"):
        rewards.check(forbids, X)


def test_the_gradient_of_a_value_that_is_not_finite_is_nan():
    """Also where JAX finds a finite one: nothing else in a training step would tell."""
    _, gradient = jax.jit(rewards.value_and_gradient, static_argnums=0)(
        lambda x, cond=None: x[:, 1] + jax.lax.stop_gradient(jnp.log(x[:, 0])), JX
    )
    good = X[:, 0] > 0
    assert 0 < good.sum() < 6
    np.testing.assert_array_equal(gradient, np.where(good[:, None], [[0.0, 1.0]], np.nan))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (in_numpy, r"cannot trace the reward \(TracerArrayConversionError.*from_host"),
        (in_a_loop, r"differentiate it \(ValueError.*reward_weighted.*from_host"),
        (lambda x, cond=None: jnp.sum(x), "one value a row"),
    ],
)
def test_within_a_training_step_too_the_remedy_is_named(reward, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: rewards.value_and_gradient(reward, x), JX)


def test_samples_that_are_none_or_not_floating_point_are_refused(without_hook):
    with pytest.raises(ValueError, match=r"floating-point numbers, .* got uint8"):
        rewards.check(rewards.brightness, np.zeros((2, 3, 3), np.uint8))
    for none in (np.zeros((0, 3)), np.float64(1.0)):
        with pytest.raises(ValueError, match=r"one row or more, got shape \("):
            rewards.check(rewards.brightness, none)


def test_values_alone_may_count():
    counted = rewards.values_alone(lambda x, cond=None: jnp.sum(x > 0, axis=1), JX)
    assert counted.dtype == jnp.float32
    np.testing.assert_array_equal(counted, np.sum(X > 0, axis=1))
    assert rewards.values_alone(lambda x, cond=None: x[:, 0] > 0, JX).dtype == jnp.float32
    with pytest.raises(ValueError, match="one value a row"):
        rewards.values_alone(lambda x, cond=None: jnp.sum(x), JX)


calls = []


def outside(x, cond):
    """A score of NumPy with its gradient; writes into its input as careless code does."""
    calls.append((x.shape, x.dtype))
    shift = 0 if cond is None else cond["shift"][:, None]
    values, gradient = np.sum(np.sin(x + shift), axis=1), np.cos(x + shift)
    x *= 0
    return values, gradient


def same(x, cond=None):
    return jnp.sum(jnp.sin(x + (0 if cond is None else cond["shift"][:, None])), axis=1)


def test_a_reward_from_outside_is_that_of_jax():
    """Under jit with a gradient, inside of a longer chain, with conditions, mapped; one call for both."""
    host = rewards.from_host(outside)
    rewards.check(host, X)
    x, cond = JX, {"shift": jnp.arange(6, dtype=jnp.int32), "name": X}

    @jax.jit(static_argnums=0)
    def both(reward, x, cond):
        return rewards.value_and_gradient(reward, x, cond)

    calls.clear()
    for ours, theirs in zip(both(host, x, cond), both(same, x, cond), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert calls == [((6, 2), np.float32)]

    @jax.jit(static_argnums=0)
    def chain(reward, scale):
        def loss(scale, cond):
            return jnp.sum(jnp.exp(reward(scale * x, cond)) * jnp.arange(6))

        floats = {"shift": jnp.zeros(6), "name": x}
        return jax.value_and_grad(loss)(scale, None), jax.grad(loss, argnums=1)(scale, floats)

    ours, by_cond = chain(host, jnp.float32(0.7))
    np.testing.assert_allclose(ours, chain(same, jnp.float32(0.7))[0], rtol=1e-5)
    assert not any(leaf.any() for leaf in by_cond.values())  # as stated: the condition has no gradient

    mapped = jax.jit(lambda x: jax.vmap(lambda x: jax.grad(lambda x: jnp.sum(host(x)))(x))(x))(
        x.reshape(3, 2, 2)
    )
    np.testing.assert_allclose(mapped, np.cos(X).reshape(3, 2, 2), rtol=1e-5)


def test_a_reward_from_outside_gets_and_gives_the_right_precision(x64):
    host = rewards.from_host(outside)
    for dtype, at_host in ((jnp.bfloat16, np.float32), (jnp.float32, np.float32), (jnp.float64, np.float64)):
        calls.clear()
        values, gradient = rewards.value_and_gradient(host, jnp.asarray(X, dtype))
        assert calls == [((6, 2), at_host)]
        assert (values.dtype, gradient.dtype) == (at_host, dtype)
        np.testing.assert_allclose(gradient.astype(float), np.cos(X), atol=1e-2)
    np.testing.assert_allclose(gradient, np.cos(X.astype(float)), rtol=1e-14)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: (np.zeros(5), x), r"values \(6,\) and a gradient \(6, 2\), got \(5,\) and \(6, 2\)"),
        (lambda x: (np.zeros(6), x[:, 0]), r"got \(6,\) and \(6,\)"),
        (lambda x: np.zeros(6), "a pair of values and gradient, got ndarray"),
    ],
)
def test_wrong_shapes_from_outside_are_named(returned, message):
    host = rewards.from_host(lambda x, cond: returned(x))
    with pytest.raises(ValueError, match=message):
        rewards.check(host, X)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(host)(JX))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rewards.quadratic(0.0, 0.0), "curvature must be positive and finite, got 0.0"),
        (lambda: rewards.quadratic(0.0, float("inf")), "curvature .* got inf"),
        (lambda: rewards.quadratic(np.zeros((6, 2)))(JX), r"shape of an event, \(2,\), got \(6, 2\)"),
        (lambda: rewards.class_log_probability(lambda x: x, 2)(JX), "label is 2; .* classes 0 to 1"),
        (lambda: rewards.class_log_probability(lambda x: x, -1)(JX), "label is -1"),
        (lambda: rewards.class_log_probability(lambda x: x)(JX), r"integers of shape \(6,\), got None"),
        (lambda: rewards.class_log_probability(lambda x: x)(JX, JX), r"got ArrayImpl of shape \(6, 2\)"),
        (lambda: rewards.class_log_probability(lambda x: x)(JX, JX[:, 0]), "dtype float32"),
        (lambda: rewards.class_log_probability(lambda x: x)(JX, {"a": LABELS}), "got dict of shape None"),
        (lambda: rewards.colour(3)(jnp.asarray(IMAGES)), "channel is 3; .* 2 channels"),
        (lambda: rewards.colour(0)(JX[:, 0]), "0 channels"),
        (lambda: rewards.smoothness(jnp.zeros((2, 1, 4))), r"two or more pixels a side, got \(2, 1, 4\)"),
    ],
)
def test_wrong_numbers_and_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_condition_that_is_no_class_is_found_by_the_check():
    reward = rewards.class_log_probability(lambda x: x)
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=r"not finite in 1 of 6 rows \(the first: \[5\]\)"):
            rewards.check(reward, X, jnp.array([0, 1, 0, 1, 0, wrong]))
