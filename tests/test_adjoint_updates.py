"""Updates of deterministic adjoint matching: what they compute, clipping, several on a path, and what is refused."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_toy import flat
from reward_toy import (
    AWAY,
    BASE,
    CENTRE,
    KAPPA,
    LAM,
    network,
    noise,
    wavy,
)

import gft_jax as gft

adjoint_matching = gft.objectives.adjoint_matching
gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
mean_loss = jax.jit(gft.mean_loss, static_argnums=0)
ZERO = jnp.zeros(())


@jax.jit(static_argnums=0)
def prepared(method, params, base_params, state, batch):
    return method.prepare(params, base_params, state, batch, ZERO)


UNEVEN = np.array([0.0, 0.1, 0.3, 0.35, 0.7, 1.0])
POINT = gft.rewards.quadratic(CENTRE, KAPPA)


# What is computed, and in what precision


def test_heun_is_of_second_order_where_euler_is_of_first(x64):
    """At the base the loss is ``int |a|^2 dt / lam^2``."""

    def at(solver, num_steps):
        method = adjoint_matching(network, wavy, cost_weight=LAM, num_steps=num_steps, solver=solver)
        return float(mean_loss(method, BASE, BASE, noise(4))[0])

    exact = at(diffrax.Heun(), 256)
    for solver, order in ((diffrax.Euler(), 1), (diffrax.Heun(), 2)):
        errors = [abs(at(solver, num_steps) - exact) for num_steps in (8, 16)]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_the_base_is_evaluated_once_a_step_and_no_more():
    calls = []

    def counted(params, t, x, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return network(params, t, x)

    method = adjoint_matching(network, wavy, cost_weight=LAM, base_drift=counted, num_steps=9, truncation=4)
    jax.block_until_ready(gradient(method, AWAY, BASE, noise(3)))
    jax.effects_barrier()
    assert len(calls) == 4


def test_a_random_part_of_the_steps_has_the_same_loss_on_average(x64):
    method, part = (
        adjoint_matching(network, wavy, cost_weight=LAM, times=UNEVEN, num_matched=num) for num in (None, 2)
    )
    x0 = jnp.broadcast_to(noise(1).x0, (4000, 2))
    batch = gft.Batch(x0, None, gft.pairing.row_keys(3, 0, 4000))
    rows = prepared(part, AWAY, BASE, (), batch)
    losses = np.asarray(part.loss(AWAY, BASE, rows, ZERO).loss)
    exact = float(mean_loss(method, AWAY, BASE, noise(1))[0])
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - exact) < 4 * error
    assert error < 0.02 * exact  # power: five percent would be seen
    assert np.all(rows.t[:, 0] != rows.t[:, 1])


def test_path_and_adjoint_are_float32_under_a_network_and_noise_in_half_precision():
    """What is expected is from the same noise in float32."""

    def half(params, t, x, cond=None):
        return network(*jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, t, x)))

    params = jax.tree.map(jnp.float32, BASE)
    rounded = noise(16).x0.astype(jnp.bfloat16)
    method, exact = (
        adjoint_matching(drift, wavy, cost_weight=LAM, num_steps=20, unroll=1) for drift in (half, network)
    )
    ours, expected = (
        prepared(each, params, params, (), noise(16)._replace(x0=x0))
        for each, x0 in ((method, rounded), (exact, rounded.astype(jnp.float32)))
    )
    assert {leaf.dtype for leaf in (ours.control, ours.base_velocity, ours.x)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(ours.control, expected.control, atol=0.05 * np.abs(expected.control).max())
    # What the products return in half precision is added up in float32: the sum has values that bfloat16 has not.
    assert np.any(ours.control != ours.control.astype(jnp.bfloat16).astype(jnp.float32))


def test_memory_depends_on_the_trained_steps_alone():
    def bytes_of(num_steps, truncation):
        method = adjoint_matching(network, wavy, cost_weight=LAM, num_steps=num_steps, truncation=truncation)
        params = jax.tree.map(jnp.float32, BASE)
        analysis = gradient.lower(method, params, params, noise(256)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    few, many, all_steps = bytes_of(20, 3), bytes_of(200, 3), bytes_of(200, 200)
    assert many < 1.1 * few
    assert all_steps > 10 * few  # power


@pytest.mark.parametrize(("unroll", "num_loops"), [(4, 2), (3, 3)])
def test_written_out_steps_leave_no_loop_around_the_products(unroll, num_loops):
    """Two loops are those of the path, without gradients. On CPU a convolution has a slow gradient inside a loop."""

    def convolution(params, t, x, cond=None):
        return jax.lax.conv(x, params, (1, 1), "SAME") + t.reshape(-1, 1, 1, 1)

    method = adjoint_matching(
        convolution, gft.rewards.brightness, cost_weight=LAM, num_steps=9, truncation=4, unroll=unroll
    )
    params = jnp.ones((3, 3, 3, 3))
    batch = gft.Batch(jnp.ones((2, 3, 6, 6)), None, gft.pairing.row_keys(0, 0, 2))
    program = gradient.lower(method, params, params, batch).as_text()
    assert program.count("stablehlo.while") == num_loops


# Clipping, several updates, and what goes wrong


def test_gradients_are_clipped_at_a_running_quantile():
    clip = gft.objectives.QuantileClip(level=0.8, rate=0.2)
    method = adjoint_matching(network, wavy, cost_weight=LAM, num_steps=3, clip=clip)
    runner = gft.parallel.single_device(gft.finetuner(method, optax.sgd(0.0)))
    base = jax.tree.map(jnp.float32, BASE)
    state = runner.init(jax.random.key(0), base)
    assert state.objective_state == 0.0
    shares, norms = [], prepared(method, base, base, ZERO, noise(64)).stats["reward_gradient_norm"]
    for seed in range(60):
        state, info = runner.step(state, base, noise(64, seed=seed))
        shares.append(float(info.stats["unclipped"]))
        if seed == 0:
            np.testing.assert_allclose(state.objective_state, np.exp(np.mean(np.log(norms))), rtol=1e-5)
    assert shares[0] == 1.0  # nothing is known of the norms yet
    assert np.mean(shares[20:]) == pytest.approx(0.8, abs=0.03)
    threshold = state.objective_state
    rows = prepared(method, base, base, threshold, noise(64))
    plain = prepared(method, base, base, ZERO, noise(64))
    norm = np.asarray(plain.stats["reward_gradient_norm"])
    factor = np.minimum(1.0, threshold / norm)
    assert 0 < np.mean(factor < 1) < 0.5
    np.testing.assert_allclose(rows.control, plain.control * factor[:, None, None], rtol=1e-4, atol=1e-6)


def test_one_large_norm_or_rows_without_one_do_not_disable_the_clip():
    """From the first batch on: rows of norm about one, one of a million, and a quarter of zeros."""
    clip, threshold, starts = gft.objectives.QuantileClip(), ZERO, []
    random = np.random.default_rng(0)
    for step in range(40):
        norm = random.uniform(0.5, 1.5, size=64) * (np.arange(64) >= 16)
        norm[-1] = 1e6 if step == 0 else norm[-1]
        share_below = np.mean(norm <= threshold) if step else 1.0
        logs = np.log(np.where(norm > 0, norm, 1))
        threshold = clip.update(threshold, np.mean(logs), np.mean(norm == 0), share_below)
        starts.append(float(threshold))
        if step == 0:
            assert starts[0] == pytest.approx(np.exp(np.mean(logs[16:])))
            assert norm.mean() > 1e4 * starts[0]  # power: where the mean norm would start
    assert 1.2 < min(starts[20:]) <= max(starts) < 1.8  # the quantile of all rows is 1.37
    assert clip.update(ZERO, 0.0, 1.0, 1.0) == 0  # all are zero: nothing is known


def test_several_updates_take_the_paths_of_the_first():
    method = adjoint_matching(network, wavy, cost_weight=LAM, num_steps=4)
    base = jax.tree.map(jnp.float32, BASE)
    batch = noise(8)
    optimizer = optax.sgd(0.05)
    runner = gft.parallel.single_device(gft.finetuner(method, optimizer, averaging=None, num_updates=3))
    state, info = runner.step(runner.init(jax.random.key(0), base), base, batch)
    rows = prepared(method, base, base, (), batch)

    @jax.jit
    def descend(params):
        def mean(params):
            terms = method.loss(params, base, rows, ZERO)
            return jnp.mean(terms.loss), jnp.mean(terms.stats["squared_control"])

        (loss, size), slopes = jax.value_and_grad(mean, has_aux=True)(params)
        return jax.tree.map(lambda leaf, slope: leaf - 0.05 * slope, params, slopes), loss, size

    expected, losses, sizes = base, [], []
    for _ in range(3):
        expected, loss, size = descend(expected)
        losses.append(loss)
        sizes.append(size)
    np.testing.assert_allclose(flat(state.params), flat(expected), rtol=1e-5)
    assert int(state.step) == 1
    # Paths of the new parameters would have been others.
    fresh = prepared(method, descend(base)[0], base, (), batch)
    assert np.abs(fresh.x - rows.x).max() > 1e-3
    # The report is of the first update, at which the drift is the base.
    for reported in (info.loss, info.stats["matching_loss"]):
        np.testing.assert_allclose(reported, losses[0], rtol=1e-5)
    assert info.stats["squared_control"] < 1e-10 < 1e-4 < min(sizes[1:])


def test_an_adjoint_that_explodes_is_reported_and_changes_nothing():
    def steep(params, t, x, cond=None):
        return params * x

    method = adjoint_matching(steep, POINT, cost_weight=LAM, num_steps=20)
    _, stats = mean_loss(method, 1.0, jnp.float32(300.0), noise(4, dim=1))
    assert stats["adjoint_norm"] > 1e20 * stats["reward_gradient_norm"]
    runner = gft.parallel.single_device(gft.finetuner(method, optax.sgd(0.1), averaging=None))
    base = jnp.float32(1e4)
    state, info = runner.step(runner.init(jax.random.key(0), base, jnp.float32(1.0)), base, noise(4, dim=1))
    assert not info.is_finite
    assert state.params == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_weight": 0.0}, r"cost_weight \(lambda\) must be > 0 and finite, got 0.0: without"),
        ({"cost_weight": float("nan")}, "must be > 0 and finite, got nan"),
        ({"cost_weight": float("inf")}, "must be > 0 and finite, got inf"),
        ({"truncation": 11}, r"1 to 10 here, got 11"),
        ({"truncation": 0}, r"1 to 10 here, got 0"),
        ({"num_matched": 11}, "1 to 10 here, got 11"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"num_steps": None, "times": [0.1, 1.0]}, "must run from 0 .* to 1"),
        ({"num_steps": None, "times": [1.0, 0.0]}, "must run from 0 .* to 1"),
        ({"solver": diffrax.Tsit5()}, r"diffrax.Euler\(\) or diffrax.Heun\(\), got Tsit5"),
        (
            {"solver": diffrax.Heun(), "adjoint": gft.objectives.full_adjoint},
            "full adjoint is that of Euler's method",
        ),
        ({"unroll": 0}, "unroll must be >= 1"),
        ({"clip": gft.objectives.QuantileClip(level=1.0)}, r"quantile in \(0, 1\), got 1.0"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        adjoint_matching(network, wavy, **({"cost_weight": LAM, "num_steps": 10} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation": 2.5}, r"an integer from 1 to 10 here, got 2.5"),
        ({"num_matched": 2.0}, "an integer from 1 to 10 here, got 2.0"),
        ({"unroll": 1.5}, "unroll must be an integer, got 1.5"),
        ({"num_steps": 9.5}, "num_steps must be an integer, got 9.5"),
        ({"solver": diffrax.Heun}, r"diffrax.Euler\(\) or diffrax.Heun\(\), got the class Heun"),
        ({"cost": gft.control_costs.quadratic}, "must be a ControlCost, .*quadratic.*: call it"),
        ({"cost": 2.0}, "must be a ControlCost, .* got 2.0$"),
    ],
)
def test_options_of_another_kind_are_refused_at_once(without_hook, changes, message):
    with pytest.raises(ValueError, match=message):
        adjoint_matching(network, wavy, **({"cost_weight": LAM, "num_steps": 10} | changes))


def test_rewards_that_cannot_work_are_refused_in_the_step():
    def step(reward):
        method = adjoint_matching(network, reward, cost_weight=LAM, num_steps=2)
        prepared(method, BASE, BASE, (), noise(4))

    with pytest.raises(ValueError, match=r"shape \(4,\) for samples of shape \(4, 2\); got shape \(\)"):
        step(lambda x, cond=None: jnp.sum(x))
    with pytest.raises(ValueError, match=r"have no gradient: .*reward_weighted"):
        step(lambda x, cond=None: jnp.argmax(x, axis=1))
    with pytest.raises(ValueError, match="base_params is None"):
        gft.mean_loss(adjoint_matching(network, wavy, cost_weight=LAM), BASE, None, noise(4))
