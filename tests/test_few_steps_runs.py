"""The few_steps experiment from the command line: a tiny run in each domain, what it leaves, and its continuation."""

import json
import shlex

import jax
import numpy as np
import pytest
from programs import call, on_fake_devices

import gft_jax as gft
from experiments import evaluate, loop, sample, train
from experiments.few_steps import frequencies
from experiments.few_steps.program import compare_few_steps
from experiments.few_steps.scores import EVALUATIONS, FEW_STEP_SAMPLES, w2_at
from experiments.files import read_arrays
from gft_jax.reflow import pairs

TINY = shlex.split(
    "--steps 20 --eval-every 5 --base-steps 5 --hidden 8 --depth 1 --batch-size 16 --sampling-steps 4 --num-pairs 20 "
    "--pair-steps 2 --num-target 40"
)
METHODS = {
    "toy2d": ("reflow", "gradual-mean-flow-coupled"),
    "digits": ("gradual-coupled", "mean-flow", "reflow-again"),
}
STAGES = {
    "toy2d": ["gradual-half", "reflow", "gradual-mean-flow-coupled"],
    "digits": [*METHODS["digits"][:-1], "gradual-half", "reflow", "reflow-again"],
}
FLAGS = {
    "toy2d": ("--methods", *METHODS["toy2d"]),
    "digits": ("--methods", *METHODS["digits"], "--coupling", "semi-discrete"),
}


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run):
    return [row for row in rows_of(run) if row["kind"] != "timing"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a finished tiny run of each domain in it."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for domain, flags in FLAGS.items():
            arguments = ["--domain", domain, "--out", domain, *TINY, *flags]
            assert call(monkeypatch, train, "few_steps", *arguments) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["toy2d", "digits"])
def test_a_run_leaves_scores_by_evaluations_and_by_cost(workspace, domain):
    run = workspace / domain
    config, rows = json.loads((run / "config.json").read_text()), rows_of(run)
    assert config["methods"] == STAGES[domain]
    # By hand, of 20 steps of 16 rows at 3, in four intervals: a half less 20 pairs of 2 steps, after 4 steps at 3.8.
    assert config["method_steps"]["reflow"] == 8
    cost_of_half = (4 * 3 + 3 * 1) * 16
    assert config["method_cost"]["reflow"] == cost_of_half + 40 + 8 * 3 * 16
    for name in config["methods"]:
        evaluated = [row for row in rows if row["kind"] == "evaluation" and row["method"] == name]
        assert evaluated[-1]["step"] == config["method_steps"][name]
        assert evaluated[-1]["forward_evaluations"] == config["method_cost"][name]
        assert len({row["forward_evaluations"] for row in evaluated}) == len(evaluated) == 5
        assert len({evaluated[-1][w2_at(count)] for count in EVALUATIONS}) == len(EVALUATIONS)
    # What reflow starts at is what its pairs come from.
    ends = {
        name: [row for row in rows if row.get("method") == name and "w2" in row] for name in config["methods"]
    }
    assert ends["reflow"][0]["w2"] == ends["gradual-half"][-1]["w2"]
    page = (run / "report.html").read_text()
    assert "Few evaluations" in page
    assert "evaluated up to step" not in page  # none is told to be unfinished
    assert (run / "few_steps.png").is_file()
    assert (run / "few_step_samples.png").is_file()
    few = read_arrays(run / FEW_STEP_SAMPLES)
    assert list(few) == ["base", *config["methods"]]
    assert {len(samples) for samples in few.values()} == {len(EVALUATIONS)}


@pytest.mark.slow
def test_its_methods_are_loaded_sampled_and_judged(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    run = workspace / "toy2d"
    loaded = gft.load(run, "gradual-mean-flow-coupled")
    assert loaded.average is not None
    assert gft.load(run, "reflow").average is None
    # The very samples that the run has kept, in one evaluation.
    few = read_arrays(run / FEW_STEP_SAMPLES)["gradual-mean-flow-coupled"]
    key = jax.random.split(jax.random.key(20_260_122))[0]
    noise = jax.random.normal(key, (512, 2))[: few.shape[1]]
    again = gft.sampling.sample_average(loaded.average, loaded.params, noise).x
    np.testing.assert_allclose(again, few[0], rtol=1e-4, atol=1e-5)
    arguments = ["toy2d", "--method", "gradual-mean-flow-coupled", "--num-steps", 2, "--num-samples", 5]
    assert call(monkeypatch, sample, *arguments, "--solver", "average") == 0
    assert "5 samples, 2 evaluations" in capsys.readouterr().out
    assert call(monkeypatch, sample, "toy2d", "--method", "reflow", "--solver", "average") == 2
    assert "average" in capsys.readouterr().err
    few_samples = ["--num-samples", 12, "--num-halves", 2, "--nfe-steps", 1, 2]
    assert call(monkeypatch, evaluate, "toy2d", "--method", "gradual-mean-flow-coupled", *few_samples) == 0
    card = json.loads((run / "cards" / "gradual-mean-flow-coupled-seed0" / "card.json").read_text())
    solvers = {point["solver"] for point in card["nfe_curve"]["points"]}
    assert solvers == {"Euler", "Midpoint", "average velocity"}
    assert any("path KL" in note for note in card["notes"])


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_numbers(workspace, monkeypatch, capsys):
    """Interrupted when a part of the pairs of reflow was on disk, and again after one checkpoint of reflow."""
    monkeypatch.chdir(workspace)
    arguments = ["--out", "interrupted", *TINY, *FLAGS["toy2d"]]
    note, row = pairs.note_rows, loop.Loop._row

    def noted(partial, description, rows):
        note(partial, description, rows)
        raise KeyboardInterrupt

    def logged(self, kind, **values):
        if (self.method, kind, values.get("step")) == ("reflow", "evaluation", 4):
            raise KeyboardInterrupt
        return row(self, kind, **values)

    made = workspace / "interrupted" / "pairs" / "reflow-seed0"
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "note_rows", noted)
        assert call(monkeypatch, train, "few_steps", *arguments) == 130
    assert made.with_name("reflow-seed0.partial").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_row", logged)
        assert call(monkeypatch, train, "few_steps", *arguments, "--resume") == 130
    written = (made / "x1.npy").stat().st_mtime_ns
    capsys.readouterr()
    assert call(monkeypatch, train, "few_steps", *arguments, "--resume") == 0
    assert (made / "x1.npy").stat().st_mtime_ns == written
    printed = capsys.readouterr().out
    assert "gradual-half (seed 0): finished before" in printed
    assert "reflow (seed 0): continues at step 2" in printed
    assert numbers(workspace / "interrupted") == numbers(workspace / "toy2d")


@pytest.mark.slow
def test_a_run_on_several_devices_has_the_same_numbers():
    """Four fake devices, over which rows and parameters are split: reflow and average velocities among them."""
    report = on_fake_devices("few_steps_program.py", *TINY, *FLAGS["toy2d"])
    assert float(report["difference"]) < 1e-3
    assert float(report["moved"]) > 0.03


@pytest.mark.slow
def test_the_error_by_frequency_is_that_of_one_step(capsys):
    """With next to no training samples lie at the old law, six away in both coordinates; with it they come near."""
    assert frequencies.one_step_error(8.0, 0, 4).root_mean_square > 2
    error = frequencies.one_step_error(8.0, 0, 300)
    assert error.root_mean_square < 0.6
    assert error.deviation == pytest.approx(0.5, abs=0.25)
    frequencies.main((8.0,), (0,), 300)
    assert f"| 8 | {error.root_mean_square:.2f} | {error.deviation:.2f} |" in capsys.readouterr().out


def test_reflow_in_several_processes_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config = train.parse(["few_steps", "--parallel", "pmap", *FLAGS["toy2d"]])
    with pytest.raises(ValueError, match="run has 2: leave reflow out of --methods"):
        compare_few_steps(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_methods_and_experiments_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "few-step") == 2
    assert "Did you mean 'few_steps'?" in capsys.readouterr().err
    assert call(monkeypatch, train, "few_steps", "--methods", "l2-sp") == 2
    assert call(monkeypatch, train, "few_steps", "--num-pairs", "0") == 2
    assert "--num-pairs is 0" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
