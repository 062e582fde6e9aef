"""Cheaper updates of adjoint matching: what their benchmarks compute, and their page. No speed is tested."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments.benchmarks import cheaper, cheaper_page, convolutions
from experiments.benchmarks.__main__ import benchmark
from experiments.benchmarks.variants import COARSE, FULL, VARIANTS, Variant, objective_of
from experiments.reward.problem import Problem
from gft_jax.loading import init_params


def test_coarse_paths_end_like_the_fine_ones():
    fine = np.linspace(0, 1, 51)
    np.testing.assert_allclose(COARSE[-4:], fine[-4:], rtol=1e-12)
    np.testing.assert_allclose(np.diff(COARSE[:11]), 0.094, rtol=1e-9)


def test_half_precision_is_of_the_path_alone():
    module = gft.networks.ResidualMLP(hidden=16, depth=1, time_features=4)
    drift = gft.drifts.from_linen(module)
    params = jax.tree.map(lambda leaf: leaf + 0.05, init_params(module, jax.random.key(0), (3,)))
    batch = gft.pairing.source_batches(gft.pairing.standard_normal((3,)), batch_size=8, seed=0).batch(0)
    exact, half = (
        objective_of(Variant("", {"num_steps": 3, "truncation": 2}, half_precision=flag), drift, reward, 0.5)
        for flag, reward in ((False, gft.rewards.brightness), (True, gft.rewards.brightness))
    )

    @jax.jit
    def found(params):
        rows = [each.prepare(params, params, (), batch, jnp.zeros(())) for each in (exact, half)]
        at = [drift(params, rows[1].t[:, k], rows[1].x[:, k], None) for k in range(2)]
        losses = [each.loss(params, params, rows[1], jnp.zeros(())).loss for each in (exact, half)]
        return rows, jnp.stack(at, axis=1), losses

    (exact_rows, half_rows), velocity, losses = jax.device_get(found(params))
    apart = np.abs(half_rows.x - exact_rows.x).max() / np.abs(exact_rows.x).max()
    assert 1e-5 < apart < 2e-2
    assert half_rows.x.dtype == half_rows.control.dtype == np.float32
    np.testing.assert_allclose(half_rows.base_velocity, velocity, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(*losses)


def test_runs_are_scored_after_whole_steps():
    assert cheaper.marks(1, (60, 200), 40) == [5, 10, 20, 40, 60, 200]
    assert cheaper.marks(4, (60, 200), 1000) == [60, 124, 200, 248, 500, 1000]
    assert cheaper.whole_steps(1, 4) == 4


@pytest.mark.slow
def test_the_benchmark_of_cheaper_updates(monkeypatch, tmp_path):
    options = {"num_steps": 4}
    variants = {
        FULL: VARIANTS[FULL]._replace(options=options),
        "reused": VARIANTS["reused"]._replace(options={**options, "truncation": 1}, num_updates=2),
    }
    plan = cheaper.plan_of(8, 1, quick=True)
    config = replace(plan.config, depth=1, batch_size=8)
    images = np.random.default_rng(0).standard_normal((100, 2, 2)).astype(np.float32)
    problem = Problem(images, gft.rewards.brightness, images, lambda samples: {}, None, None, {})
    monkeypatch.setattr(cheaper, "problem_of", lambda config: problem)
    monkeypatch.setattr(
        cheaper,
        "pretrained_base",
        lambda config, data, module, *_: init_params(module, jax.random.key(0), (2, 2)),
    )
    monkeypatch.setattr(cheaper, "times", lambda *_: {FULL: 0.5, "reused": 0.125})
    plan = plan._replace(config=config, variants=variants, seeds=(0, 1))
    outcome = cheaper.measure(plan, tmp_path / "base")
    assert outcome.at_time == {
        FULL: 2,
        "reused": 8,
    }  # in the second that two updates of the full adjoint take
    by_moment = {}
    for score in outcome.scores:
        assert score.seconds == pytest.approx(score.updates * {FULL: 0.5, "reused": 0.125}[score.variant])
        key = score.variant, score.strength, score.updates
        by_moment.setdefault(key, {})[score.seed] = score.scores["displacement"]
    assert all(set(found) == {0, 1} for found in by_moment.values())
    assert {strength for name, strength, _ in by_moment if name == FULL} == set(cheaper.STRENGTHS[True])
    start, end = (by_moment["reused", cheaper.STRENGTHS[False][0], updates] for updates in (2, 8))
    assert 0 < start[0] < end[0]
    assert end[0] != end[1]

    text = cheaper_page.write(tmp_path, "cheaper", plan, outcome, "the command", {"versions": {"jax": "0"}})
    assert (tmp_path / "cheaper.md").read_text() == text
    assert (tmp_path / "cheaper.png").stat().st_size > 1000
    assert "| last 3 steps, 4 updates" not in text
    assert f"| {variants['reused'].words} | 125.0 | 4.0 |" in text
    strongest = cheaper.STRENGTHS[False][-1]
    both = by_moment["reused", strongest, 8].values()
    cell = f"{np.mean(list(both)):.2f} ({min(both):.2f} to {max(both):.2f})"
    line = next(
        line
        for line in text.splitlines()
        if line.startswith(f"| {variants['reused'].words} | {strongest:g} | 8 |")
    )
    assert cell in line

    with pytest.raises(ValueError, match="one positive width, got 10 and"):
        benchmark("cheaper", widths=(8, 16), out=tmp_path)


def test_a_step_that_is_not_finite_is_not_scored():
    def step(state, base_params, batch):
        return state, gft.finetuning.StepInfo(0.0, 0.0, 0.0, np.asarray(False), {})

    runner = gft.parallel.Runner(lambda *_: None, step, step, lambda x: x, lambda x: x)
    stream = gft.pairing.source_batches(gft.pairing.standard_normal((2,)), batch_size=2, seed=0)
    state = gft.finetuning.TrainState(*[None] * 6)
    with pytest.raises(ValueError, match="was not finite"):
        cheaper.trained(runner._replace(init=lambda *_: state), 1, None, stream, [1])


def test_the_handwritten_adjoint_of_convolutions_is_the_librarys_and_another_is_refused(monkeypatch):
    monkeypatch.setattr(convolutions, "BATCH_SIZE", 2)
    monkeypatch.setattr(convolutions, "SIDE", 4)
    outcomes = convolutions.measure((2,), 1)  # refuses programs that do not agree
    assert [outcome.comparison.at_most for outcome in outcomes] == [1.5, None]
    first = {"x": jnp.ones(3), "control": jnp.ones(3)}
    second = {**first, "control": jnp.asarray([1.0, 1.0, 1.0 + 3e-5])}
    with pytest.raises(ValueError, match="differ in control by 3e-05"):
        convolutions.check_agreement(first, second)
