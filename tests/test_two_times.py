"""Two-time drifts: zero effect at the start, derivatives, the user's own networks, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import gft_jax as gft
from gft_jax.drifts import (
    evaluate_average,
    from_equinox,
    from_function,
    from_linen,
    from_nnx,
    in_precision,
    instantaneous,
    lifted,
    two_times,
)
from gft_jax.networks import ResidualMLP, SecondTime, SiT, UNet, two_time_params
from gft_jax.networks.lora import LoRAParams, low_rank

BATCH = 4
T = jnp.linspace(0.1, 0.7, BATCH, dtype=jnp.float32)
S = T + jnp.array([0.25, 0.0, 0.1, 0.3], jnp.float32)
NETWORKS = {
    "mlp": (ResidualMLP(hidden=8, depth=2, time_features=4, num_classes=3), (2,), np.arange(BATCH) % 4),
    "sit": (SiT(8, 2, 2, 2), (4, 4, 1), None),
    "sit in a loop": (SiT(8, 2, 2, 2, scan=True, remat=True), (4, 4, 1), None),
    "unet": (UNet(4, (1,), 1, (), 2, 2), (4, 4, 1), None),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def example(name, dtype=np.float32):
    """A network of one time and its pretrained (here random) parameters, that of two times and the initial ones, x."""
    network, event_shape, cond = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH, *event_shape)), dtype)
    twice = network.clone(two_times=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), T, x, cond)["params"]
    base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, dtype), shapes)
    initial = jax.jit(twice.init)(jax.random.key(0), T, x, cond)["params"]
    return network, base, twice, initial, x, cond


@every_network
def test_the_second_time_has_no_effect_at_the_start_bit_for_bit(name):
    network, base, twice, initial, x, cond = example(name)
    average = two_times(from_linen(twice))
    params = two_time_params(base, initial)

    @jax.jit
    def all_of(params, base):
        moved = jax.tree.map(lambda leaf: leaf, params)
        moved["second_time"]["last"]["kernel"] += 0.1
        return (
            from_linen(network)(base, T, x, cond),
            [
                average(params, T, S, x, cond),
                instantaneous(average)(params, T, x, cond),
                from_linen(twice)(params, T, x, cond),
            ],
            average(moved, T, S, x, cond),
            average(moved, T, S + 0.1, x, cond),
        )

    velocity, ours, moved, later = all_of(params, base)
    for each in ours:
        np.testing.assert_array_equal(each, velocity)
    assert np.abs(velocity).max() > 0.1
    change = np.abs(later - moved).reshape(BATCH, -1).max(axis=1)
    assert (change > 1e-5).all()  # as soon as it is trained, it counts
    assert params.keys() - base.keys() == {"second_time"}
    assert all(
        a is b
        for a, b in zip(jax.tree.leaves(base), jax.tree.leaves({k: params[k] for k in base}), strict=True)
    )


@every_network
def test_forward_mode_derivatives_agree_with_finite_differences(x64, name):
    _, base, twice, initial, x, cond = example(name, np.float64)
    params = two_time_params(base, jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.1, initial))
    average = two_times(from_linen(twice))
    t, s = T.astype(jnp.float64), S.astype(jnp.float64)
    v = jnp.cos(jnp.arange(x.size, dtype=jnp.float64)).reshape(x.shape)
    # Attention takes its softmax in float32, whose rounding a quotient divides by h.
    h, bound = (2e-4, 2e-3) if name.startswith("sit") else (1e-5, 1e-6)

    @jax.jit
    def both(params):
        def along(t, x):
            return evaluate_average(average, params, t, s, x, cond)

        _, rate = jax.jvp(along, (t, x), (jnp.ones_like(t), v))
        return rate, (along(t + h, x + h * v) - along(t - h, x - h * v)) / (2 * h)

    rate, quotient = both(params)
    np.testing.assert_allclose(rate, quotient, atol=bound * np.abs(rate).max())


class Own(nn.Module):
    """A user's network in linen, one- or two-time."""

    second: bool = False

    @nn.compact
    def __call__(self, t, x, cond=None, s=None):
        h = nn.Dense(8, name="in")(x) + nn.Dense(8, name="time")(t[:, None])
        if self.second:
            h += SecondTime(8, name="second_time")(s - t)
        return nn.Dense(x.shape[-1], name="out")(nn.tanh(h))


class OwnNNX(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs, second=False):
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        if second:
            self.second = nnx.Linear(1, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, t, x, s=None):
        shift = 0 if s is None else self.second((s - t)[:, None])
        return jnp.tanh(self.layer(x) + shift) + t[:, None]


class OwnEquinox(eqx.Module):
    """The same in equinox, for one row."""

    layer: eqx.nn.Linear
    second: jax.Array | None = None

    def __call__(self, t, x, s=None):
        shift = 0 if s is None else self.second * (s - t)
        return jnp.tanh(self.layer(x) + shift) + t


def own_drifts():
    """One-time drift, its parameters, two-time drift, and its initial parameters of another draw."""
    x = jnp.ones((1, 2))
    one, other = jax.random.key(0), jax.random.key(1)
    second = Own(second=True)
    yield (
        from_linen(Own()),
        Own().init(one, x[:, 0], x)["params"],
        from_linen(second),
        second.init(other, x[:, 0], x, s=x[:, 0])["params"],
    )
    yield *from_nnx(OwnNNX(nnx.Rngs(0))), *from_nnx(OwnNNX(nnx.Rngs(1), second=True))
    layers = [eqx.nn.Linear(2, 2, key=key) for key in (one, other)]
    yield *from_equinox(OwnEquinox(layers[0])), *from_equinox(OwnEquinox(layers[1], jnp.zeros(2)))


def test_networks_of_the_user_become_two_time_drifts():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 2)), jnp.float32)
    for drift, base, keyword, initial in own_drifts():
        average = two_times(keyword)
        params = two_time_params(base, initial)
        velocity = drift(base, T, x)
        np.testing.assert_array_equal(evaluate_average(average, params, T, S, x), velocity)
        moved = jax.tree.map(lambda leaf: leaf + 0.05, params)
        assert np.abs(average(moved, T, S, x) - average(moved, T, T, x))[np.array([0, 2, 3])].min() > 1e-4
        with pytest.raises(ValueError, match="the two-time network has no parameters"):
            two_time_params(initial, base)
        with pytest.raises(ValueError, match="no second time, only what the pretrained ones have"):
            two_time_params(base, base)
    written = two_times(from_function(lambda t, x, cond, s: x * (s - t)[:, None] + cond))
    np.testing.assert_allclose(written(None, T, S, x, x), x * (S - T)[:, None] + x)


def test_combinators_of_drifts_are_lifted():
    _, base, twice, initial, x, cond = example("mlp")
    average = two_times(from_linen(twice))
    params = two_time_params(base, jax.tree.map(lambda leaf: leaf + 0.1, initial))
    with pytest.raises(ValueError, match="dtype must be of floating-point numbers"):
        lifted(lambda drift: in_precision(drift, jnp.int32), average)
    exact = average(params, T, S, x, cond)
    rounded = lifted(in_precision, average)(params, T, S, x, cond)
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    lora = low_rank(["block_*/kernel"], rank=2, whole=["second_time/*"])
    adapted = lifted(lora.on_activations, average)
    adapters = lora.adapter.init(jax.random.key(0), params)
    np.testing.assert_array_equal(adapted(params, T, S, x, cond), exact)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    ours = adapted(LoRAParams(params, moved), T, S, x, cond)
    np.testing.assert_allclose(ours, average(lora.merge(params, moved), T, S, x, cond), rtol=1e-4, atol=1e-5)
    assert np.abs(ours - exact).max() > 1e-2


def test_what_has_no_second_time_is_refused_with_the_remedy():
    network, base, twice, initial, x, cond = example("mlp")
    params = two_time_params(base, initial)
    average = two_times(from_linen(twice))
    without_block = {name: leaf for name, leaf in base.items() if name != "block_0"}
    blocks_alone = low_rank(["block_*/kernel"], rank=2)
    rows = [
        (lambda: two_times(from_linen(network))(base, T, S, x, cond), "two_times=True.*two_time_params"),
        (lambda: average(base, T, S, x, cond), "parameters of a ResidualMLP of one time.*two_time_params"),
        (lambda: average(params, T, S[:2], x, cond), r"shape \(4,\) of t, got shape \(2,\)"),
        (lambda: two_times(from_function(lambda t, x: x))(None, T, S, x), "keyword argument s.*SecondTime"),
        (lambda: two_times(in_precision(from_linen(twice))), "passes no second time on.*lifted"),
        (lambda: instantaneous(from_linen(twice)), "no second time.*two_times"),
        (lambda: lifted(in_precision, from_linen(twice)), "no second time"),
        (lambda: instantaneous(lambda params, t, x, cond=None, more=None: x), "no second time"),
        (lambda: evaluate_average(average, params, 0.5, 0.4, x, cond), r"got s=0\.4 before t=0\.5"),
        (lambda: evaluate_average(average, params, T, S[:2], x, cond), r"s must be.*\(4,\).*\(2,\)"),
        (lambda: evaluate_average(average, params, T[:2], 1.0, x, cond), r"t must be.*\(4,\).*\(2,\)"),
        (lambda: two_time_params(without_block, initial), "has block_0.*besides its second time"),
        (
            lambda: blocks_alone.adapter.init(jax.random.key(0), params),
            "second_time/last/kernel is zero.*whole",
        ),
        (lambda: gft.networks.SecondTime(0), "features must be >= 1, got 0"),
        (lambda: gft.networks.SecondTime(4, 3), "even and >= 2, got 3"),
    ]
    for call, message in rows:
        with pytest.raises(ValueError, match=message):
            call()


def test_one_number_in_two_precisions_is_one_time():
    _, base, twice, initial, x, cond = example("mlp")
    average, params = two_times(from_linen(twice)), two_time_params(base, initial)
    for t, s in ((0.3, jnp.float32(0.3)), (jnp.float32(0.3), 0.3), (np.float64(0.1), jnp.float32(0.1))):
        ours = evaluate_average(average, params, t, s, x, cond)
        np.testing.assert_array_equal(
            ours, instantaneous(average)(params, jnp.full(BATCH, t, jnp.float32), x, cond)
        )


def test_adapters_leave_out_a_second_time_that_has_learned():
    """Where it has an effect already, it may stay as it is."""
    _, base, _, initial, _, _ = example("mlp")
    trained = two_time_params(base, jax.tree.map(lambda leaf: leaf + 0.1, initial))
    adapters = low_rank(["block_*/kernel"], rank=2).adapter.init(jax.random.key(0), trained)
    assert not any("second_time" in name for name in adapters)


@every_network
def test_a_described_two_time_network_is_found_again(tmp_path, name):
    _, base, twice, initial, x, cond = example(name)
    params = two_time_params(base, initial)
    gft.loading.save_model(tmp_path, twice, params, x.shape[1:])
    loaded = gft.load(tmp_path)
    assert loaded.event_shape == x.shape[1:]
    assert loaded.average is not None
    drifts = [loaded.average, two_times(from_linen(twice))]
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params)

    @jax.jit
    def both(params, moved):
        velocity = loaded.drift(moved, T, x, cond), drifts[1](moved, T, T, x, cond)
        return [drift(params, T, S, x, cond) for drift in drifts], velocity, drifts[1](moved, T, S, x, cond)

    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    (ours, expected), velocity, average = both(params, moved)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(*velocity)
    assert np.abs(expected).max() > 0.1
    assert np.abs(average - velocity[1]).max() > 1e-4  # power


def test_a_described_two_time_network_with_adapters_is_found_again(tmp_path):
    _, base, twice, initial, x, cond = example("mlp")
    params = two_time_params(base, initial)
    gft.loading.save_model(tmp_path, twice, params, (2,))
    expected = two_times(from_linen(twice))(params, T, S, x, cond)
    lora = low_rank(["block_*/kernel"], rank=2, whole=["second_time/*"])
    gft.loading.describe_model(tmp_path, twice, (2,), lora)
    loaded = gft.load(tmp_path)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, lora.adapter.init(jax.random.key(0), loaded.base_params))
    adapted = LoRAParams(loaded.base_params, adapters)
    merged = two_times(from_linen(twice))(lora.merge(*adapted), T, S, x, cond)
    assert np.abs(merged - expected).max() > 1e-2
    assert loaded.average is not None
    for average in (loaded.average, two_times(lora.by_merging(from_linen(twice)))):
        np.testing.assert_array_equal(average(loaded.params, T, S, x, cond), expected)
        ours = average(adapted, T, S, x, cond)
        np.testing.assert_allclose(ours, merged, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(loaded.drift(adapted, T, x, cond), loaded.average(adapted, T, T, x, cond))
