"""The other ways to raise a reward: memoryless adjoint matching, ascent, weighting, value guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_toy import flat
from reward_toy import AWAY, BASE, CENTRE, KAPPA, LAM, by_step, network, noise, wavy

import gft_jax as gft
from gft_jax.couplings.base import permutation_pairing
from gft_jax.pairing import row_keys

methods = gft.objectives
gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
mean_loss = jax.jit(gft.mean_loss, static_argnums=0)
POINT = gft.rewards.quadratic(CENTRE, KAPPA)
ZERO, INF = jnp.zeros(()), float("inf")


@jax.jit(static_argnums=0)
def prepared(method, params, base_params, state, batch):
    return method.prepare(params, base_params, state, batch, ZERO)


# Memoryless adjoint matching


def linear_velocity(mean, spread):
    """Slope and offset in x of the velocity of the linear path from N(0, 1) to N(mean, spread^2)."""

    def at(t):
        slope = (t * spread**2 - (1 - t)) / ((t * spread) ** 2 + (1 - t) ** 2)
        return slope, mean - slope * t * mean

    return at


def perturbed(params, t, x, cond=None):
    """The velocity of the law (mean, spread) in params, plus a constant and a slope."""
    slope, offset = linear_velocity(params["mean"], params["spread"])(t[:, None])
    return (slope + params["slope"]) * x + offset + params["shift"]


def law(mean, spread):
    return {"mean": mean, "spread": spread, "slope": 0.0, "shift": 0.0}


TILTED = (KAPPA * CENTRE / (LAM + KAPPA), (LAM / (LAM + KAPPA)) ** 0.5)
NARROW = (KAPPA * CENTRE / (LAM + KAPPA), LAM / (LAM + KAPPA))


def test_the_tilted_law_is_the_optimum_of_memoryless_adjoint_matching_and_no_other():
    """From a base of N(0, 1). Along the paths of its own process the expected gradient vanishes up to O(h)."""
    num_rows = 4000

    def gradients(num_steps, student):
        method = methods.memoryless_adjoint_matching(perturbed, POINT, cost_weight=LAM, num_steps=num_steps)
        keys = row_keys(0, 0, num_rows)
        x0 = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 9), (1,)))(keys)

        @jax.jit
        def by_row(student):
            rows = method.prepare(student, law(0.0, 1.0), (), gft.Batch(x0, None, keys), ZERO)
            slopes = jax.jacfwd(lambda both: method.loss(student | both, None, rows, ZERO).loss)
            return slopes({"slope": jnp.zeros(()), "shift": jnp.zeros(())})

        found = by_row(student)
        values = np.stack([np.asarray(found[name], np.float64) for name in ("slope", "shift")])
        return values.mean(axis=1), values.std(axis=1) / np.sqrt(num_rows)

    coarse, _ = gradients(25, law(*TILTED))
    fine, error = gradients(100, law(*TILTED))
    wrong, _ = gradients(100, law(*NARROW))
    assert np.all(np.abs(fine) < np.maximum(4 * error, 0.4 * np.abs(coarse)))  # the bias falls with h
    assert np.abs(wrong[0]) > 5 * max(np.abs(fine[0]), 4 * error[0])  # power: not the narrow law


def test_memoryless_rows_are_those_of_the_equations_written_out(x64):
    num_steps, batch = 4, noise(3)
    method = methods.memoryless_adjoint_matching(network, wavy, cost_weight=LAM, num_steps=num_steps)
    rows = prepared(method, AWAY, BASE, (), batch)
    h, x, states = 1 / num_steps, np.asarray(batch.x0), []
    keys = jax.vmap(jax.random.split)(batch.key)[:, 0]
    for k, t in enumerate((0.25, 0.5, 0.75)):
        states.append(x)
        draw = jax.vmap(lambda key, k=k: jax.random.normal(jax.random.fold_in(key, k), (2,), float))(keys)
        velocity = np.asarray(network(AWAY, jnp.full(3, t), x))
        x = x + h * (2 * velocity - x / t) + np.sqrt(2 * (1 - t) / t * h) * np.asarray(draw)
    np.testing.assert_allclose(rows.x, np.stack(states, axis=1), rtol=1e-9)
    adjoint = np.asarray(jax.grad(lambda x: jnp.sum(wavy(x)))(jnp.asarray(x))) / LAM
    for k, t in reversed(list(enumerate((0.25, 0.5, 0.75)))):
        variance = 2 * (1 - t) / t
        np.testing.assert_allclose(rows.control[:, k], variance / 2 * adjoint, rtol=1e-9)
        np.testing.assert_allclose(rows.factor[:, k], 4 / variance / 3, rtol=1e-9)
        at = jnp.full(3, t)
        _, pull = jax.vjp(lambda x, at=at, t=t: 2 * network(BASE, at, x) - x / t, jnp.asarray(states[k]))
        adjoint = adjoint + h * np.asarray(pull(jnp.asarray(adjoint))[0])


def test_the_cost_may_follow_the_temperature(x64):
    fixed, cooled = (
        methods.memoryless_adjoint_matching(network, wavy, cost_weight=weight, num_steps=4)
        for weight in (3.0, lambda temperature: 1 + temperature)
    )
    ours, expected = (gradient(each, AWAY, BASE, noise(3), 2.0)[0] for each in (cooled, fixed))
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-12)
    below_zero = gradient(cooled, AWAY, BASE, noise(3), -2.5)[0]  # it would train downhill
    assert np.all(np.isnan(flat(below_zero)))


@pytest.mark.slow
def test_training_by_memoryless_adjoint_matching_reaches_the_tilted_law():
    num_steps, num_rows = 50, 512
    slope, _ = linear_velocity(0.0, 1.0)(np.arange(num_steps) / num_steps)
    base = {"slope": jnp.asarray(slope, jnp.float32), "offset": jnp.zeros(num_steps)}
    method = methods.memoryless_adjoint_matching(
        by_step(num_steps), POINT, cost_weight=LAM, num_steps=num_steps
    )
    schedule = optax.cosine_decay_schedule(0.05, 2000)
    runner = gft.parallel.single_device(gft.finetuner(method, optax.adam(schedule), averaging=None))

    @jax.jit
    def batch(step):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), num_rows)
        return gft.Batch(jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys), None, keys)

    state, _ = runner.step_many(runner.init(jax.random.key(0), base), base, jax.vmap(batch)(jnp.arange(2000)))
    scale, mean = 1.0, 0.0
    for s, b in list(zip(state.params["slope"], state.params["offset"], strict=True))[1:]:
        scale, mean = scale * (1 + s / num_steps), mean + (s * mean + b) / num_steps
    assert mean == pytest.approx(TILTED[0], abs=0.04)
    assert scale == pytest.approx(TILTED[1], abs=0.04)  # the bias of N = 50 included
    assert abs(scale - NARROW[1]) > 0.2  # power: the deterministic optimum is another


# Ascent by plain differentiation


@pytest.mark.parametrize(("truncation", "cost_weight"), [(None, LAM), (2, LAM), (2, 0.0)])
def test_draft_is_the_control_problem_differentiated_through_the_last_steps(x64, truncation, cost_weight):
    num_steps, batch = 4, noise(5)
    method = methods.draft(network, wavy, cost_weight=cost_weight, num_steps=num_steps, truncation=truncation)
    ours = flat(gradient(method, AWAY, BASE, batch)[0])

    def problem(params):
        x, price = batch.x0, 0.0
        for k in range(num_steps):
            at, is_last = jnp.full(5, k / num_steps), k >= num_steps - (truncation or num_steps)
            velocity = network(params, at, x) if is_last else network(AWAY, at, x)
            if is_last:
                price += jnp.sum((velocity - network(BASE, at, x)) ** 2, axis=1) / (2 * num_steps)
            x = x + velocity / num_steps
        return jnp.mean(cost_weight * price - wavy(x))

    np.testing.assert_allclose(ours, flat(jax.jit(jax.grad(problem))(AWAY)), rtol=1e-9, atol=1e-12)


def test_refl_is_one_differentiated_jump_from_a_random_late_step(x64):
    batch = noise(200)
    method = methods.refl(network, wavy, num_steps=10, truncation=3)
    rows = prepared(method, AWAY, BASE, (), batch)
    times = np.asarray(rows.jump)
    assert sorted(set(times.round(6))) == [0.7, 0.8, 0.9]
    assert np.all(np.bincount((10 * times).round().astype(int))[7:] > 40)
    sample = gft.sampling.sample_ode(network, AWAY, batch.x0, num_steps=10, save_steps=True)
    index = (10 * times).round().astype(int)
    np.testing.assert_allclose(rows.x, np.asarray(sample.trajectory)[index, np.arange(200)], rtol=1e-9)

    def problem(params):
        return -jnp.mean(wavy(rows.x + (1 - rows.jump)[:, None] * network(params, rows.jump, rows.x)))

    ours = flat(gradient(method, AWAY, BASE, batch)[0])
    np.testing.assert_allclose(ours, flat(jax.jit(jax.grad(problem))(AWAY)), rtol=1e-9, atol=1e-12)


# Value guidance


def test_value_guidance_asks_for_the_gradient_at_the_guess(x64):
    method = methods.value_guidance(network, wavy, cost_weight=LAM, num_steps=5, strength=lambda t: t**3)
    rows = prepared(method, AWAY, BASE, (), noise(4))
    for k in (1, 4):
        t, x = rows.t[:, k], rows.x[:, k]
        np.testing.assert_allclose(t, k / 5)
        guess = x + (1 - t)[:, None] * network(AWAY, t, x)
        expected = (k / 5) ** 3 / LAM * jax.grad(lambda x: jnp.sum(wavy(x)))(guess)
        np.testing.assert_allclose(rows.control[:, k], expected, rtol=1e-9)
        np.testing.assert_allclose(rows.base_velocity[:, k], network(BASE, t, x), rtol=1e-9)
    loss, stats = mean_loss(method, AWAY, BASE, noise(4))
    target = rows.base_velocity + rows.control
    velocity = jnp.stack([network(AWAY, rows.t[:, k], rows.x[:, k]) for k in range(5)], axis=1)
    np.testing.assert_allclose(loss, jnp.mean(jnp.sum((velocity - target) ** 2, axis=(1, 2)) / 5), rtol=1e-9)
    assert stats["squared_control"] > 0


def test_value_guidance_of_some_points_is_that_of_all_at_them(x64):
    whole, some = (
        methods.value_guidance(network, wavy, cost_weight=LAM, num_steps=5, num_matched=num)
        for num in (None, 2)
    )
    rows, part = (prepared(method, AWAY, BASE, (), noise(4)) for method in (whole, some))
    for row in range(4):
        index = np.rint(5 * np.asarray(part.t[row])).astype(int)
        for name in ("x", "base_velocity", "control"):
            expected = getattr(rows, name)[row, index]
            np.testing.assert_allclose(getattr(part, name)[row], expected, rtol=1e-9, err_msg=name)
    wrong = methods.value_guidance(
        network, wavy, cost_weight=LAM, num_steps=5, strength=lambda t: jnp.ones(3)
    )
    with pytest.raises(ValueError, match=r"one for each time, shape \(10,\), got shape \(3,\)"):
        jax.eval_shape(wrong.prepare, AWAY, BASE, (), noise(2), ZERO)


def test_the_gradient_of_value_guidance_is_taken_outside_of_loops():
    """On CPU a convolution has a slow one inside; the one loop is that of the path, without gradients."""

    def convolved(x, cond=None):
        return jnp.mean(jax.lax.conv(x, jnp.ones((3, 3, 3, 3)), (1, 1), "SAME") ** 2, axis=(1, 2, 3))

    method = methods.value_guidance(plain, convolved, cost_weight=LAM, num_steps=9)
    batch = gft.Batch(jnp.ones((2, 3, 6, 6)), None, row_keys(0, 0, 2))
    program = prepared.lower(method, 1.0, 1.0, (), batch).as_text()
    assert program.count("stablehlo.while") == 1
    assert program.count("stablehlo.convolution") == 3  # reward at the end; at the guesses with its gradient


# Reward weighting


def plain(params, t, x, cond=None):
    return params * jnp.ones_like(x)


def first_coordinate(x, cond=None):
    return x[:, 0]


def test_with_a_coupling_samples_come_by_their_weights_and_take_their_own_along(x64):
    alone, paired = (
        methods.reward_weighted(
            plain, first_coordinate, sharpness=0.7, base_weight=0.0, num_steps=3, coupling=coupling
        )
        for coupling in (None, gft.couplings.exact())
    )
    own = jnp.arange(1.0, 13.0)
    batch = noise(12, dim=1, cond=own)._replace(weight=own)
    x1 = batch.x0[:, 0] + 1.0
    first, state = (
        prepared(alone, 1.0, 1.0, alone.init(1.0, 1.0), batch),
        {"mean": 0.4 + ZERO, "known": 1 + ZERO},
    )
    np.testing.assert_allclose(first.preference, np.ones(12))  # nothing is known of the mean yet
    rows, coupled = (prepared(method, 1.0, 1.0, state, batch) for method in (alone, paired))
    preference = np.exp(0.7 * (x1 - 0.4))
    np.testing.assert_allclose(rows.reward, x1, rtol=1e-9)
    np.testing.assert_allclose(rows.preference, preference, rtol=1e-6)
    for each, order in ((rows, np.arange(12)), (coupled, np.asarray(coupled.path.cond).astype(int) - 1)):
        ends = each.path.x + (1 - each.path.t)[:, None] * each.path.velocity
        np.testing.assert_allclose(ends[:, 0], x1[order], rtol=1e-9)
        np.testing.assert_array_equal(each.path.weight, each.path.cond)
    counts = np.bincount(order, minlength=12)
    assert np.abs(counts - 12 * preference / preference.sum()).max() < 1
    assert counts.max() > 1  # power: they differ
    matched = (coupled.path.x - coupled.path.t[:, None] * coupled.path.velocity)[:, 0]  # x0 of each pair
    assert np.all(np.diff(matched[np.lexsort((matched, ends[:, 0]))]) > 0)  # exact on the line is sorted
    # What is reported, and the scale of the loss, are those of the samples as they were drawn.
    np.testing.assert_allclose(coupled.reward, np.full(12, np.average(x1, weights=own)), rtol=1e-9)
    expected = np.full(12, np.average(preference, weights=own))
    np.testing.assert_allclose(coupled.preference, expected, rtol=1e-6)


def test_resampled_samples_give_the_weighted_sum_on_average():
    """And a pairing's weights count: over draws the mean of ``weight preference (x1 - x0)`` is known."""

    def halved(key, x0, x1, cond=None, source_cond=None):
        pairing = gft.couplings.independent()(key, x0, x1)
        return pairing._replace(weight=jnp.full(len(x0), 0.5))

    method = methods.reward_weighted(
        plain, first_coordinate, sharpness=1.0, base_weight=0.0, num_steps=1, coupling=halved
    )
    x0, state = jnp.asarray(noise(8, dim=1).x0, jnp.float32), {"mean": ZERO, "known": jnp.ones(())}

    @jax.jit
    def draws(keys):
        def mean(key):
            rows = method.prepare(0.0, 0.0, state, gft.Batch(x0, None, jax.random.split(key, 8)), ZERO)
            return jnp.mean(rows.path.weight * rows.preference * rows.path.velocity[:, 0])

        return jax.lax.map(mean, keys, batch_size=100)

    values = np.asarray(draws(jax.random.split(jax.random.key(0), 4000)))
    expected, error = 0.5 * np.mean(np.exp(x0) * x0), values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * error
    assert 10 * error < abs(expected - 0.5 * np.mean(x0) * np.mean(np.exp(x0)))  # power: without the weights


def test_reward_weighting_raises_a_reward_under_a_coupling_as_without():
    """Where the condition switches the reward off, the same program raises nothing."""
    base = {"slope": jnp.zeros(4), "offset": jnp.zeros(4)}

    def train(coupling, switch):
        method = methods.reward_weighted(
            by_step(4),
            lambda x, cond: cond * x[:, 0],
            sharpness=1.0,
            base_weight=0.1,
            num_steps=4,
            coupling=coupling,
        )
        runner = gft.parallel.single_device(gft.finetuner(method, optax.adam(0.05), averaging=None))
        batches = jax.vmap(
            lambda step: gft.Batch(
                jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (64, 1)),
                None,
                row_keys(0, step, 64),
                jnp.full(64, switch),
            )
        )(jnp.arange(60))
        state, infos = runner.step_many(runner.init(jax.random.key(0), base), base, batches)
        return np.asarray(infos.stats["reward"]), float(jnp.mean(state.params["offset"]))

    exact = gft.couplings.exact()
    (alone, _), (coupled, shift), (_, still) = train(None, 1.0), train(exact, 1.0), train(exact, 0.0)
    assert np.abs([alone[:3].mean(), coupled[:3].mean()]).max() < 0.3
    assert coupled[-5:].mean() > 0.75 * alone[-5:].mean() > 2
    assert shift > 2 > 0.5 > abs(still)  # power


def test_reward_weighting_tilts_the_law_and_the_base_term_holds_it(x64):
    """With one velocity for all, the loss is ``E w (v - u)^2 + alpha (v - v_base)^2``: its slope in v, written out."""
    state = {"mean": jnp.asarray(0.5), "known": jnp.ones(())}
    method = methods.reward_weighted(
        plain, lambda x, cond=None: x[:, 0], sharpness=0.7, base_weight=0.3, num_steps=3
    )
    batch = noise(50, dim=1)
    rows = prepared(method, 1.0, 1.0, state, batch)
    loss = jax.grad(lambda v: jnp.mean(method.loss(v, jnp.full((), 0.2), rows, ZERO).loss))
    expected = 2 * np.mean(rows.preference * (1.5 - rows.path.velocity[:, 0])) + 2 * 0.3 * (1.5 - 0.2)
    np.testing.assert_allclose(loss(jnp.full((), 1.5)), expected, rtol=1e-9)
    new = method.update(state, {"reward": jnp.asarray(2.5)}, None)
    np.testing.assert_allclose(new["mean"], 0.7)
    first = method.update(method.init(None, None), {"reward": jnp.asarray(2.5)}, None)
    np.testing.assert_allclose(first["mean"], 2.5)


def test_a_reward_of_minus_infinity_forbids_a_sample(x64):
    """It has no weight in the loss and none in the mean that the weights are relative to; other infinities stop."""
    both = [
        methods.reward_weighted(
            plain,
            lambda x, cond: x[:, 0] + cond,
            sharpness=0.7,
            base_weight=0.3,
            num_steps=2,
            coupling=coupling,
        )
        for coupling in (
            None,
            lambda key, x0, x1, *conds: permutation_pairing(x0, x1, jnp.arange(6, dtype=jnp.int32)),
        )
    ]

    @jax.jit
    def of_both(cond, state):
        batch = noise(6, dim=1, cond=cond)
        found = [each.loss(1.0, 0.5, each.prepare(1.0, 1.0, state, batch, ZERO), ZERO) for each in both]
        return [(jnp.mean(each.loss), jax.tree.map(jnp.mean, each.stats)) for each in found]

    start = jax.tree.map(jnp.float64, both[0].init(1.0, 1.0))
    x1, some = np.asarray(noise(6, dim=1).x0)[:, 0] + 1, jnp.array([0, -np.inf, 0, 0, -np.inf, 0])
    allowed, none = [0, 2, 3, 5], jnp.full(6, -jnp.inf)
    later = {"mean": ZERO + 0.2, "known": ZERO + 1}
    for state, preference in ((start, np.ones(6)), (later, np.exp(0.7 * (x1 - 0.2)))):
        for loss, stats in of_both(some, state):
            assert np.isfinite(loss)
            np.testing.assert_allclose(stats["reward"], x1[allowed].mean(), rtol=1e-6)
            np.testing.assert_allclose(stats["forbidden"], 1 / 3, rtol=1e-6)
            np.testing.assert_allclose(stats["preference"], preference[allowed].sum() / 6, rtol=1e-6)
    np.testing.assert_allclose(
        both[0].update(start, of_both(some, start)[0][1], None)["mean"], x1[allowed].mean()
    )
    for loss, stats in of_both(none, later):
        np.testing.assert_allclose([stats["preference"], stats["reward"], loss], [0.0, 0.2, 0.3 * 0.25])
    assert (
        both[0].update(start, of_both(none, start)[0][1], None) == start
    )  # nothing is known of the mean yet
    for wrong in (np.inf, np.nan):
        assert all(np.isnan(loss) for loss, _ in of_both(jnp.zeros(6).at[1].set(wrong), later))


def test_reward_weighting_raises_a_reward_without_a_gradient():
    """It counts positive coordinates, in whole numbers: a quarter above the half of noise is far beyond chance."""
    base = {"slope": jnp.zeros(8), "offset": jnp.zeros(8)}
    method = methods.reward_weighted(
        by_step(8),
        lambda x, cond=None: (x[:, 0] > 0).astype(int),
        sharpness=1.0,
        base_weight=0.1,
        num_steps=8,
    )
    runner = gft.parallel.single_device(gft.finetuner(method, optax.adam(0.02), averaging=None))
    batches = jax.vmap(
        lambda step: gft.Batch(
            jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (128, 1)),
            None,
            row_keys(0, step, 128),
        )
    )(jnp.arange(150))
    _, infos = runner.step_many(runner.init(jax.random.key(0), base), base, batches)
    rewards = infos.stats["reward"]
    assert abs(float(jnp.mean(rewards[:5])) - 0.5) < 0.1
    assert float(jnp.mean(rewards[-10:])) > 0.85


# What they report, and what they refuse


@pytest.mark.parametrize(
    ("make", "options"),
    [
        ("adjoint_matching", {"cost_weight": LAM, "cost": gft.control_costs.norm_power(3)}),
        ("memoryless_adjoint_matching", {"cost_weight": LAM}),
        ("draft", {"truncation": 1}),
        ("refl", {"truncation": 1}),
        ("value_guidance", {"cost_weight": LAM}),
    ],
)
def test_rewards_without_a_value_or_a_slope_are_seen(make, options):
    """A value that is not finite makes the loss so, also with a finite gradient; rows without one are counted."""

    def reward(x, cond):
        return cond * x[:, 0] + jax.lax.stop_gradient(jnp.log(1 + cond))

    def drift(params, t, x, cond=None):
        return params * jnp.ones_like(x)

    method = getattr(methods, make)(drift, reward, num_steps=2, **options)
    batch = gft.Batch(jnp.ones((2, 1)), None, row_keys(0, 0, 2))
    params, base = jnp.float32(0.7), jnp.float32(0.5)
    loss, stats = mean_loss(method, params, base, batch._replace(cond=jnp.array([1.0, 0.0])))
    assert np.isfinite(loss)
    assert stats["zero_gradient"] == 0.5 == stats["reward_gradient_norm"]
    loss, stats = mean_loss(method, params, base, batch._replace(cond=jnp.array([1.0, -2.0])))
    assert np.isnan(loss)
    assert np.isnan(stats["reward"])


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        ("memoryless_adjoint_matching", {"cost_weight": 0.0}, "must be > 0 and finite, got 0.0"),
        ("memoryless_adjoint_matching", {"truncation": 10}, "1 to 9 here, got 10"),
        ("memoryless_adjoint_matching", {"num_steps": 1}, "num_steps must be >= 2"),
        ("memoryless_adjoint_matching", {"num_steps": None, "times": [0.0, 1.0]}, r"t0 in \(0, 1\)"),
        ("memoryless_adjoint_matching", {"path": gft.paths.brownian_bridge(0.5)}, "no memoryless process"),
        ("draft", {"truncation": 11}, "1 to 10 here, got 11"),
        ("draft", {"cost_weight": -1.0}, "must be >= 0 and finite, got -1.0"),
        ("refl", {"truncation": 0}, "1 to 10 here, got 0"),
        ("value_guidance", {"cost_weight": -1.0}, "must be > 0 and finite, got -1.0"),
        ("value_guidance", {"num_matched": 0}, "1 to 10 here, got 0"),
        ("reward_weighted", {"sharpness": 0.0}, "sharpness must be > 0"),
        ("reward_weighted", {"base_weight": -0.1}, "base_weight must be >= 0"),
        ("memoryless_adjoint_matching", {"cost_weight": INF}, "must be > 0 and finite, got inf"),
        ("draft", {"cost_weight": INF}, "must be >= 0 and finite, got inf"),
        ("value_guidance", {"cost_weight": INF}, "must be > 0 and finite, got inf"),
        ("reward_weighted", {"sharpness": INF}, "sharpness must be > 0 and finite, got inf"),
        ("reward_weighted", {"base_weight": INF}, "base_weight must be >= 0 and finite, got inf"),
        ("reward_weighted", {"max_exponent": 0.0}, "max_exponent must be > 0"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(make, changes, message):
    options = {"num_steps": 10}
    if make in ("memoryless_adjoint_matching", "value_guidance"):
        options["cost_weight"] = LAM
    if make == "reward_weighted":
        options |= {"sharpness": 1.0, "base_weight": 1.0}
    with pytest.raises(ValueError, match=message):
        getattr(methods, make)(network, wavy, **(options | changes))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            "memoryless_adjoint_matching",
            {"cost_weight": LAM, "num_steps": 2.5},
            "num_steps must be an integer",
        ),
        ("draft", {"truncation": 2.5}, "an integer from 1 to 50 here, got 2.5"),
        ("draft", {"cost": gft.control_costs.quadratic}, "must be a ControlCost, .*: call it"),
    ],
)
def test_options_of_another_kind_are_refused_at_once(without_hook, make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(methods, make)(network, wavy, **options)


def test_a_mean_loss_without_the_state_of_the_method_says_what_to_give():
    method = methods.adjoint_matching(
        network, wavy, cost_weight=LAM, num_steps=2, clip=methods.QuantileClip()
    )
    with pytest.raises(ValueError, match=r"has a state, .* objective_state is .*: give\s+objective.init"):
        gft.mean_loss(method, BASE, BASE, noise(2))
    start = method.init(BASE, BASE)
    assert np.isfinite(mean_loss(method, BASE, BASE, noise(2), objective_state=start)[0])
