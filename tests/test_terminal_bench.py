"""What a terminal run is wired from: objectives, rows, ratio, effective sample sizes, distances, doubts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments import report
from experiments.base_flow import samples_of_base
from experiments.configs.terminal import Terminal
from experiments.data.shifted import ShiftedData
from experiments.methods import PATHS
from experiments.run_folder import RunFolder
from experiments.terminal import ratio as ratios
from experiments.terminal.bench import NUM_LAW, TerminalBench
from experiments.terminal.doubts import doubts
from experiments.terminal.figures import TERMINAL_COLUMNS, end_law
from experiments.terminal.methods import method_of
from experiments.terminal.tempered import TemperedLaws
from gft_jax.density_ratio import DensityRatio
from gft_jax.pairing import row_keys

CONFIG = Terminal(
    steps=10, hidden=4, depth=1, batch_size=6, rollout_steps=4, num_base_samples=30, sampling_steps=3
)
SLOPE = np.array([0.5, -0.2], np.float32)


def log_ratio(x, cond=None):
    return x @ SLOPE


@pytest.fixture(scope="module")
def bench():
    """A bench whose ratio and base samples are known."""
    rows = np.random.default_rng(0).normal(size=(4, 30, 2)).astype(np.float32)
    made = TerminalBench(CONFIG, ShiftedData(*rows))
    made._ratio, made._base_rows = DensityRatio(log_ratio, 0.5, 1.0, 7), 10 + rows[0]
    return made


def test_the_three_objectives_cool_towards_the_same_law(bench):
    """Weights exp(-(1 - w) l) and exp(w l), and an adjoint whose end is w grad l; w = 1 / (1 + beta)."""
    params, x1 = bench.fresh_params(0), np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    batch = gft.Batch(jnp.asarray(x1 + 1), jnp.asarray(x1), row_keys(0, 0, 6))
    for w in (0.2, 1.0):
        beta = jnp.asarray((1 - w) / w)
        for name, exponent in (("terminal-target", w - 1), ("terminal-base", w)):
            rows = bench.method(name).objective.prepare(params, params, (), batch, beta)
            np.testing.assert_allclose(rows.ratio_weight, np.exp(exponent * log_ratio(x1)), rtol=1e-5)
        rows = bench.method("terminal-reward").objective.prepare(params, params, (), batch, beta)
        # A drift that is zero at first: the adjoint of the SDE's drift -x / t is a(1) times t, at the end a(1) itself.
        last = np.asarray(rows.t).argmax(axis=1)
        variance = (1 - np.asarray(rows.t)) / np.asarray(rows.t)
        asked = np.asarray(rows.control)[np.arange(6), last] / variance[np.arange(6), last, None]
        np.testing.assert_allclose(asked, np.broadcast_to(w * SLOPE, (6, 2)), rtol=1e-4)


def test_all_three_cool_as_gradual_linear_does(bench):
    theirs = bench.method("gradual-linear").cooling
    for name in ("terminal-target", "terminal-base", "terminal-reward"):
        ours = method_of(name, CONFIG, bench.drift, PATHS["linear"](), log_ratio).cooling
        for step in (0, 3, 8, 10):
            assert ours.temperature(ours.init(), step) == theirs.temperature(theirs.init(), step)
    assert theirs.temperature(theirs.init(), 0) == pytest.approx(19)


def test_rows_come_from_where_the_method_says(bench):
    streams = {
        name: bench.stream(name, 0, None).batch(0) for name in ("plain", "terminal-target", "terminal-base")
    }
    rows = {name: {row.tobytes() for row in np.asarray(batch.x1)} for name, batch in streams.items()}
    target, base = ({row.tobytes() for row in each} for each in (bench.data.target, bench._base_rows))
    assert rows["plain"] <= target
    assert rows["terminal-target"] <= target
    assert rows["terminal-base"] <= base
    assert bench.stream("terminal-reward", 0, None).batch(0).x1 is None


def test_the_ratio_is_that_of_target_over_base():
    target, base = (np.random.default_rng(0).normal(mean, 1, (200, 2)).astype(np.float32) for mean in (1, -1))
    found = ratios.ratio_of(Terminal(ratio_steps=200, ratio_width=8), target, base)
    ours = np.asarray(found.log_ratio(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]])))
    assert ours[0] > 1.5
    assert ours[1] < -1.5


def test_base_samples_are_those_of_the_base():
    def constant(params, t, x, cond=None):
        return 0 * x + params

    ours, noise = (samples_of_base(constant, jnp.asarray(speed), (30, 2), 3, 0) for speed in (3.0, 0.0))
    assert ours.shape == (30, 2)
    np.testing.assert_allclose(ours, noise + 3, atol=1e-5)
    assert abs(noise.mean()) < 0.6


def test_effective_sizes_and_errors_that_are_logged(bench, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    folder, laws = RunFolder(tmp_path), TemperedLaws("normal", "moons")
    ratios.record_ratio(folder, CONFIG, bench._ratio, bench.data, bench._base_rows, laws)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["target_weight"] for row in rows] == list(ratios.WEIGHTS)

    def kish(logs):
        w = np.exp(logs - logs.max())
        return w.sum() ** 2 / (len(w) * (w**2).sum())

    for row in (rows[3], rows[15]):
        w = row["target_weight"]
        assert row["target_rows"] == pytest.approx(kish((w - 1) * log_ratio(bench.data.target)), rel=1e-4)
        assert row["base_rows"] == pytest.approx(kish(w * log_ratio(bench._base_rows)), rel=1e-4)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert (facts["ratio_log_loss"], facts["ratio_steps_kept"]) == (0.5, 7)
    known = [ratios._known(CONFIG, x) - log_ratio(x) for x in (bench.data.held_out, laws.draw(0.5, 30))]
    for name, error in zip(("target", "halfway"), known, strict=True):
        assert facts[f"ratio_rmse_{name}"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)


def test_an_evaluation_is_held_against_the_law_of_its_step(bench, tmp_path):
    samples = np.random.default_rng(2).normal(size=(40, 2)).astype(np.float32)
    folder = RunFolder(tmp_path)
    watch = bench.watch(folder, "terminal-base", 0)
    step = 3  # of 8 cooling steps, from w = 0.05 to 1
    w = 0.05 + 0.95 * step / 8
    expected = gft.metrics.energy_distance(samples, TemperedLaws("normal", "moons").draw(w, NUM_LAW))
    assert watch(step, samples)["end_law_energy_distance"] == pytest.approx(expected, rel=1e-5)
    kept = np.load(tmp_path / "snapshots" / "terminal-base" / "000003.npz")["samples"]
    np.testing.assert_array_equal(kept, samples)
    for name in ("plain", "gradual-self-paced", "gradual-constant"):
        assert bench.watch(folder, name, 0)(step, samples) == {}
    assert bench.watch(folder, "terminal-base", 1)(step, samples)["end_law_energy_distance"] > 0


def test_the_column_is_the_mean_over_all_evaluations():
    (column,) = TERMINAL_COLUMNS
    assert column.number([{"end_law_energy_distance": x} for x in (1.0, 2.0, 6.0)]) == 3.0
    assert column.number([{"w2": 1.0}]) is None


# What the report says against it


def sizes(**shares):
    return [{"kind": "effective sample size", "seed": 0, "step": 0, "target_weight": 0.05, **shares}]


def test_doubts_are_told():
    config = {"ratio_log_loss": 0.05, "config": {"num_target": 400, "num_base_samples": 4096}}
    rows = sizes(target_rows=0.02, base_rows=0.9)
    told = list(doubts(config, rows, ["terminal-target", "terminal-base", "plain"]))
    assert len(told) == 2
    assert "hardly overlap" in told[0]
    assert "terminal-target: at target weight 0.05 the weights of its 400 rows are worth 8" in told[1]
    (alone,) = doubts({"ratio_steps_kept": 0, "config": {}}, [], ["terminal-reward"])
    assert "learned nothing" in alone
    assert list(doubts({"config": {}}, [], ["plain"])) == []


def test_a_report_without_any_method_in_the_figure(tmp_path):
    """As of a run that was stopped early, or of images without weights in the batches."""
    rows = sizes(target_rows=0.5, base_rows=0.5)
    (only,) = end_law(rows, ["plain"]).axes
    assert len(only.lines) == 2
    config = {"experiment": "terminal", "methods": ["plain"], "seeds": [0], "config": {"steps": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "No method has been evaluated yet" in report.write_report(tmp_path).read_text()
