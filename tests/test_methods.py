"""The methods that are compared, the scores, and what a run shares: against numbers worked out by hand."""

import logging
import types
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import BASE_PARAMS, PARAMS, affine, batch_of, flat, gradient

import gft_jax as gft
from experiments import evaluator, train, workbench
from experiments.configs.digits import Digits
from experiments.configs.settings import REPLAYING, Controls
from experiments.configs.terminal import TerminalName
from experiments.data.shifted import ShiftedData
from experiments.few_steps.methods import FEW_STEP_METHODS, FewStepName
from experiments.method_words import DESCRIPTIONS
from experiments.methods import BASE_MAP_STEPS, METHODS, PATHS
from experiments.terminal.methods import TERMINAL_METHODS
from gft_jax.objectives.path_rows import path_rows

CONTROLS = Controls(
    constant_weight=0.3,
    l2_sp=0.7,
    replay_weight=0.4,
    diff_tuning_weight=0.2,
    distillation_weight=0.7,
    rollout_steps=3,
    interpolation=0.6,
)
CONFIG = Digits(steps=100, learning_rate=1e-3, base_learning_rate=1e-2, batch_size=8, controls=CONTROLS)
STEPS = np.array([0, 10, 80])  # cooling ends at step 80
LINEAR = PATHS["linear"]()

COLD, STEADY = (1.0, 1.0, 1.0), (1e-3, 1e-3, 1e-3)
# Target weights and learning rates at the three steps.
TABLE = {
    "gradual-linear": ((0.05, 0.05 + 0.95 / 8, 1.0), STEADY),
    "gradual-self-paced": ((0.05, 0.05 + 0.95 * 10 / 40, 1.0), STEADY),  # of a student that keeps up
    "gradual-fast": ((0.05, 0.05 + 0.95 / 2, 1.0), STEADY),
    "gradual-cosine": ((0.05, 1 - 0.95 * np.cos(np.pi / 16) ** 2, 1.0), STEADY),
    "gradual-temperature": ((0.05, 1 / (1 + 19 * 7 / 8), 1.0), STEADY),
    "gradual-constant": ((0.3, 0.3, 0.3), STEADY),
    "plain": (COLD, STEADY),
    "from-scratch": (COLD, (1e-2, 1e-2, 1e-2)),
    "plain-warmup": (COLD, (5e-5, 1e-3 * (0.05 + 0.95 / 8), 1e-3)),
    "plain-geometric": (COLD, (1e-6, 1e-6 * 1000 ** (1 / 8), 1e-3)),
    "l2-sp": (COLD, STEADY),
    "prior-preservation": (COLD, STEADY),
    "distillation": ((0.3, 0.3, 0.3), STEADY),
    "diff-tuning": (COLD, STEADY),
    "interpolated": (COLD, STEADY),
}


def method_of(name, path=LINEAR):
    return METHODS[name](CONFIG, affine, path)


@jax.jit(static_argnums=0)
def schedules(name, keeps_up):
    """Target weights and learning rates of all steps, the latter as Adam's updates under a constant gradient."""
    method, one = method_of(name), jnp.ones(())
    stats = {"displacement_squared": keeps_up, "displacement_along_target": one}

    def advance(state, step):
        cooling, adam = state
        weight = gft.cooling.target_weight(method.cooling.temperature(cooling, step))
        update, adam = method.optimizer.update(one, adam, one)
        return (method.cooling.update(cooling, step, stats), adam), (weight, -update)

    start = method.cooling.init(), method.optimizer.init(one)
    return jax.lax.scan(advance, start, jnp.arange(CONFIG.steps))[1]


def test_every_method_is_in_the_tables():
    few = [name for name in FEW_STEP_METHODS if name not in METHODS]
    assert [*METHODS, *TERMINAL_METHODS, *few] == list(DESCRIPTIONS)
    assert tuple(FEW_STEP_METHODS) == get_args(FewStepName)
    assert tuple(TERMINAL_METHODS) == get_args(TerminalName)
    assert set(METHODS) == set(TABLE)
    assert {name for name in METHODS if method_of(name).replays} == REPLAYING
    assert [name for name in METHODS if not method_of(name).from_base] == ["from-scratch"]


@pytest.mark.parametrize("name", TABLE)
def test_target_weights_and_learning_rates(name):
    weights, rates = schedules(name, 1.0)
    np.testing.assert_allclose(weights[STEPS], TABLE[name][0], rtol=1e-5)
    np.testing.assert_allclose(rates[STEPS], TABLE[name][1], rtol=1e-4)
    np.testing.assert_array_equal(weights[80:], weights[80])
    np.testing.assert_allclose(rates[80:], rates[80], rtol=1e-4)


def test_self_paced_cooling_waits_for_a_student_that_lags():
    weights, _ = schedules("gradual-self-paced", 0.0)
    np.testing.assert_allclose(weights[STEPS], (0.05, 0.05, 1.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["plain-warmup", "plain-geometric", "interpolated", "from-scratch", "l2-sp"])
def test_these_methods_are_flow_matching_but_for_a_penalty(name):
    """The gradient, L2-SP's too: flow matching's plus 0.7 (params - base_params), where that is 0.3 everywhere."""
    batch = batch_of(8)
    expected, _ = gradient(method_of("plain").objective, PARAMS, BASE_PARAMS, batch, 0.0)
    ours, _ = gradient(method_of(name).objective, PARAMS, BASE_PARAMS, batch, 0.0)
    penalty = 0.7 * 0.3 if name == "l2-sp" else 0.0
    np.testing.assert_allclose(flat(ours), flat(expected) + penalty, rtol=1e-5)


def test_the_parameters_that_are_evaluated():
    for name in METHODS:
        share = 0.6 if name == "interpolated" else 1.0
        ours = method_of(name).evaluated(PARAMS, BASE_PARAMS)
        np.testing.assert_allclose(flat(ours), flat(BASE_PARAMS) + share * 0.3, rtol=1e-6)


@jax.jit(static_argnums=0)
def replay_rows(objective, params, batch, temperature):
    """Rows that a replay method prepares, its loss, and the mean squared errors of new and replayed rows."""
    rows = objective.prepare(params, None, (), batch, temperature)
    terms = objective.loss(params, None, rows, temperature)
    errors = [jnp.mean(jnp.sum((affine(params, None, r.x) - r.velocity) ** 2, 1)) for r in rows]
    return rows, jnp.mean(terms.loss), errors


@pytest.mark.parametrize(
    ("name", "means", "variance", "weight"),
    [("prior-preservation", (1 / 2, 1 / 2), 1 / 12, 0.4), ("diff-tuning", (1 / 3, 2 / 3), 1 / 18, 0.2)],
)
def test_times_and_weights_of_new_and_replayed_rows(name, means, variance, weight):
    """On a path whose velocity is bounded between 0.01 and 0.99 alone: the laws are those of [0, 1], squeezed."""
    objective = method_of(name, PATHS["brownian-bridge"]()).objective
    rows, loss, (new, replayed) = jax.device_get(replay_rows(objective, PARAMS, batch_of(4000), 0.0))
    np.testing.assert_allclose(loss, new + weight * replayed, rtol=1e-5)
    assert [len(part.t) for part in rows] == [3000, 1000]
    drawn = np.array([part.t.mean() for part in rows])
    errors = 0.98 * np.sqrt(variance / np.array([3000, 1000]))
    means = 0.01 + 0.98 * np.array(means)
    assert np.all(np.abs(drawn - means) < 4 * errors)
    if name == "diff-tuning":
        assert np.all(np.abs(drawn - means[::-1]) > 6 * errors)  # power: the laws exchanged
    times = np.concatenate([part.t for part in rows])
    assert np.float32(0.01) <= times.min() < 0.012
    assert 0.988 < times.max() <= np.float32(0.99)


def test_distillation_weighs_target_and_base_paths():
    """The gradient against two means, the second on Euler's paths of the base."""
    batch, objective = batch_of(8), method_of("distillation").objective
    rows = jax.jit(objective.prepare)(PARAMS, BASE_PARAMS, (), batch, 1.0).path
    ours, _ = gradient(objective, PARAMS, BASE_PARAMS, batch, 0.7 / 0.3)

    @jax.jit
    def expected(params, base_params, weight):
        x = batch.x0
        for _ in range(3):
            x = x + rows.t[:, None] / 3 * affine(base_params, None, x)

        def loss(params):
            to_target = jnp.sum((affine(params, None, rows.x) - rows.velocity) ** 2, 1)
            to_base = jnp.sum((affine(params, None, x) - affine(base_params, None, x)) ** 2, 1)
            return jnp.mean(weight * to_target + (1 - weight) * to_base)

        return flat(jax.grad(loss)(params))

    np.testing.assert_allclose(flat(ours), expected(PARAMS, BASE_PARAMS, 0.3), rtol=1e-4)
    assert not np.allclose(flat(ours), expected(PARAMS, BASE_PARAMS, 0.7), rtol=0.1)  # power: exchanged


def optimal_transport(params, t, x, cond=None):
    """A share of the velocity of optimal transport from N(0, 1) to N(0.5, 9)."""
    t = t[:, None]
    return params * (0.5 + 2 * (x - 0.5 * t) / (1 + 2 * t))


def test_the_reached_weight_is_measured_on_pairs_of_the_training_coupling():
    """A student at w times the velocity of optimal transport, with a base that stands still, has reached w."""
    x1 = np.asarray(0.5 + 3 * jax.random.normal(jax.random.key(0), (2000, 1)))
    data = ShiftedData(x1[:2], x1, x1[:2], x1[:2])
    stream = gft.pairing.batches(
        x1, batch_size=256, seed=evaluator.NOISE_SEED, coupling=gft.couplings.exact()
    )
    pairs = evaluator.coupled_pairs(stream, len(x1))
    assert pairs.x1.shape == (8 * 256, 1)

    @jax.jit
    def moments(pairs):
        rows = path_rows(LINEAR.path, LINEAR.times, lambda t: jnp.ones_like(t), pairs)
        r, d = optimal_transport(1.0, rows.t, rows.x), rows.velocity
        batches = jnp.mean((r * (d - r)).reshape(8, 256), axis=1)  # rows of a batch depend on each other
        return jnp.mean(r * d), jnp.std(batches, ddof=1) / jnp.sqrt(8.0)

    along, error = moments(pairs)
    for given, is_right in ((pairs, True), (None, False)):
        evaluate = evaluator.evaluator(optimal_transport, 0.0, data, LINEAR, 1, given)
        for share in (1.0, 0.5):
            scores, _ = evaluate(share)
            z = abs(scores["reached_weight"] / share - 1.0) * along / error
            assert z < 3 if is_right else z > 6  # power: independent pairs read something else
        assert "training_energy_distance" in scores


def test_a_single_target_sample_is_scored_without_its_energy_distance():
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    scores, _ = evaluator.evaluator(optimal_transport, 0.0, ShiftedData(x, x[:1], x, x), LINEAR, 1)(1.0)
    assert "training_energy_distance" not in scores
    assert np.isfinite(list(scores.values())).all()


def bench_of(**settings):
    config = Digits(
        hidden=4,
        depth=1,
        batch_size=8,
        num_target=16,
        controls=Controls(num_replay=8),
        **{"sampling_steps": 2} | settings,
    )
    return workbench.Workbench(config, config.data())


@pytest.mark.slow
def test_what_is_replayed_is_sampled_and_compiled_once(caplog):
    bench = bench_of(methods=("diff-tuning",))
    base_params = bench.fresh_params(0)
    counts = []
    for seed in (1, 2):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            batches = bench.stream("diff-tuning", seed, base_params).many(0, 2)
        counts.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert counts[0] > 0
    assert counts[1] == 0
    samples = bench._base_samples(base_params)
    assert samples is bench._base_samples(base_params)
    assert {row.tobytes() for row in np.asarray(batches.x1[:, ::4]).reshape(-1, 8, 8)} <= {
        row.tobytes() for row in samples
    }
    others = jax.tree.map(lambda leaf: leaf + 0.1, base_params)
    assert not np.array_equal(bench._base_samples(others), samples)


@pytest.mark.parametrize("coupling", ["independent", "exact", "base-exact"])
def test_a_run_is_scored_on_pairs_of_its_own_coupling(coupling, tmp_path, monkeypatch):
    given = []
    key = jax.random.key(0)
    monkeypatch.setattr(workbench, "base_of_run", lambda *args: base_params)
    monkeypatch.setattr(workbench, "evaluator", lambda *args: given.append(args[5]) or (lambda _: ({}, None)))
    bench = bench_of(coupling=coupling)
    # A fresh network hardly moves anything.
    base_params = jax.tree.map(lambda leaf: 0.5 * jax.random.normal(key, leaf.shape), bench.fresh_params(0))
    bench.prepare(types.SimpleNamespace(path=tmp_path, log_once=lambda row: None), tmp_path)
    if coupling == "independent":
        assert given == [None]
        return
    (pairs,) = given
    assert pairs.x1.shape == (16, 8, 8)
    np.testing.assert_array_equal(np.sort(pairs.x1, 0), np.sort(bench.data.target, 0))  # each image once
    half = jax.tree.map(lambda leaf: leaf[:8], (pairs.x0, pairs.x1))
    optimal = gft.couplings.exact()
    if coupling == "base-exact":
        base = gft.sampling.flow_map(bench.drift, base_params, num_steps=BASE_MAP_STEPS)
        assert list(optimal(key, *half).source_index) != list(range(8))
        half = jax.jit(base)(half[0]), half[1]
    assert list(optimal(key, *half).source_index) == list(range(8))


def flow_between_normal_laws(params, t, x, cond=None):
    """Velocity along the linear path from N(0, 1) to N(mean, sd^2), in every coordinate."""
    mean, sd = params
    t = t.reshape((-1,) + (1,) * (x.ndim - 1))
    slope = (t * sd**2 - (1 - t)) / ((1 - t) ** 2 + (t * sd) ** 2)
    return mean + slope * (x - t * mean)


def paths_of_sde(law, base, num_steps, num):
    """Relative entropy of each of ``num`` paths in one dimension, where g^2 = 2 (1 - t) / t makes b = 2 v - x / t."""
    generator = np.random.default_rng(0)
    x, total, h = generator.standard_normal(num), np.zeros(num), 1 / num_steps
    for t in np.arange(num_steps - 1) * h:  # the last step counts for nothing
        velocity, other = (np.asarray(flow_between_normal_laws(p, t * np.ones(1), x)) for p in (law, base))
        if t == 0:
            x = x + h * velocity
            continue
        total += h * t / (1 - t) * (velocity - other) ** 2
        noise = np.sqrt(2 * h * (1 - t) / t) * generator.standard_normal(num)
        x = x + h * (2 * velocity - x / t) + noise
    return total


def test_the_path_kl_of_a_run_is_that_of_its_processes():
    """Against a simulation by hand; of equal spreads, where no path differs from another, against the closed form."""
    num_steps, width = 10, 300
    base, law, moved = (0.0, 1.0), (0.4, 0.6), (0.4, 1.0)
    path_kl = evaluator.path_kl_to_base(
        flow_between_normal_laws, LINEAR.path, gft.couplings.independent(), (width,), num_steps
    )
    rows = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
    data = ShiftedData(rows, rows, rows, rows)
    evaluate = evaluator.evaluator(flow_between_normal_laws, base, data, LINEAR, 1, None, path_kl)
    assert evaluate(base)[0]["path_kl"] == 0.0
    t = np.arange(1, num_steps - 1) / num_steps
    closed = 0.4**2 * np.sum(t * (1 - t) / ((1 - t) ** 2 + t**2) ** 2) / num_steps
    np.testing.assert_allclose(evaluate(moved)[0]["path_kl"], width * closed, rtol=1e-4)
    value = evaluate(law)[0]["path_kl"] / width
    for at, towards, is_right in ((law, base, True), (base, law, False), (moved, base, False)):
        by_hand = paths_of_sde(at, towards, num_steps, 20_000)
        error = by_hand.std() * np.sqrt(1 / 20_000 + 1 / (evaluator.NUM_SDE_PATHS * width))
        z = abs(value - by_hand.mean()) / error
        assert z < 4 if is_right else z > 10  # power: exchanged, and of another law


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sampling_steps": 3}, None),
        ({"sampling_steps": 3, "coupling": "exact"}, "only where x0 is independent of x1"),
        ({"sampling_steps": 3, "path": "brownian-bridge"}, "this path has no alpha and sigma"),
        ({"sampling_steps": 2}, "sampling_steps is 2: give at least 3"),
    ],
)
def test_a_run_without_path_kl_says_why(settings, reason, tmp_path, monkeypatch):
    given, rows = [], []
    monkeypatch.setattr(workbench, "base_of_run", lambda *args: bench.fresh_params(0))
    monkeypatch.setattr(workbench, "coupled_pairs", lambda *args: None)
    monkeypatch.setattr(workbench, "evaluator", lambda *args: given.append(args[6]) or (lambda _: ({}, None)))
    bench = bench_of(**settings)
    folder = types.SimpleNamespace(path=tmp_path, log_once=rows.append)
    bench.prepare(folder, tmp_path)
    reasons = [row["reason"] for row in rows if row["kind"] == "no path KL"]
    if reason is None:
        assert callable(given[0])
        assert reasons == []
    else:
        assert given == [None]
        assert len(reasons) == 1
        assert reason in reasons[0]
    rows.clear()
    bench.prepare(folder, tmp_path, with_path_kl=False)
    assert given[1] is None
    assert {row["kind"] for row in rows} == {"floor", "evaluation"}


@pytest.mark.parametrize(("every", "devices"), [(8, 2), (3, 1), (1, 1)])
def test_replayed_rows_that_do_not_fit_the_devices_are_refused_before_any_work(every, devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(Digits, "data", lambda self: pytest.fail("work has begun"))
    controls, rows = Controls(replay_every=every), 8 // devices
    for parallel in ("pmap", "single")[: 3 - devices]:
        config = Digits(batch_size=8, methods=("prior-preservation",), controls=controls, parallel=parallel)
        message = f"--controls.replay-every is {every}; .* {rows} rows .*--batch-size 8, devices {devices}"
        with pytest.raises(ValueError, match=message):
            train.run(config)
        if devices == 1:
            with pytest.raises(ValueError, match=message):
                config.check()
    Digits(batch_size=8, methods=("plain",), controls=controls).check()  # without replay it does not matter
