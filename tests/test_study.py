"""The study: its statistics against known numbers, and a tiny study end to end."""

import csv
import shlex
import sys

import numpy as np
import pytest

from experiments import loop
from experiments.study import __main__ as study
from experiments.study import plan
from experiments.study.paired import paired_difference
from experiments.study.report import main as report
from experiments.study.runs import of_curve, read_study

TINY = shlex.split(
    "digits --num-seeds 3 --few-seeds 1 --run.steps 4 --run.eval-every 2 --run.base-steps 2 --run.hidden 8 "
    "--run.depth 1 --run.batch-size 8 --run.sampling-steps 2 --run.controls.num-replay 8"
)


def call(monkeypatch, program, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        return program()
    except SystemExit as stop:
        return stop.code


def test_paired_intervals_cover_the_true_mean_and_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(0)
    covered, decided = 0, 0
    for _ in range(200):
        shared = rng.normal(0.0, 5.0, 10)
        ours = dict(enumerate(shared + rng.normal(0.5, 0.3, 10)))
        difference = paired_difference(ours, dict(enumerate(shared)))
        covered += difference.low <= 0.5 <= difference.high
        decided += difference.sign == 1
    # A percentile interval of ten values covers a little less often than its level, 95 %.
    assert 0.86 < covered / 200 < 0.98
    assert decided / 200 > 0.95  # power: 0.5 is small beside the spread of 5 between seeds
    assert paired_difference(ours, {seed: value + 100 for seed, value in ours.items()}).sign == -1


def test_paired_difference_takes_the_seeds_in_common_and_gives_no_interval_for_two():
    difference = paired_difference({0: 1.0, 1: 3.0, 5: 9.0}, {1: 1.0, 0: 0.0, 7: 2.0})
    assert difference == (1.5, None, None, 2)
    assert difference.sign == 0
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({0: np.nan, 1: 1.0}, {0: 1.0, 1: 1.0}) is None


def test_curves_are_read_where_the_reached_weight_first_crosses_a_level():
    columns = {
        "step": (0, 50, 100, 150, 200),
        "reached_weight": (0.1, 0.4, 0.59, 0.45, 0.95),
        "w2": (4.0, 3.0, 2.0, 9.0, 1.0),
        "energy_distance": (1.0, 0.5, 0.07, 0.3, 0.0),
    }
    curve = [dict(zip(columns, point, strict=True)) for point in zip(*columns.values(), strict=True)]
    share = 0.1 / 0.19
    expected = {  # 0.9 is jumped over
        "steps_to_tenth": 100,
        "w2_at_weight_0.5": 3.0 - share,
        "energy_distance_at_weight_0.5": 0.5 - share * 0.43,
    }
    assert of_curve(curve) == pytest.approx(expected)


def test_a_tiny_study_is_interrupted_resumed_and_written_up(tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    arguments = (*TINY, "--parts", "coupling", "rates", "--out", out)
    monkeypatch.setattr(plan, "CONTROLS", ("plain", "gradual-linear", "l2-sp"))
    monkeypatch.setattr(plan, "SCHEDULES", ("gradual-self-paced", "gradual-linear"))
    monkeypatch.setattr(plan, "RATES", (1e-4,))
    train = loop.Loop.train

    def interrupted(self, *args):
        if (self.method, self.seed) == ("gradual-linear", 1):
            raise KeyboardInterrupt
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "train", interrupted)
        assert call(monkeypatch, study.main, *arguments) == 130
    assert [(run.method, run.seed) for run in read_study(out)] == [
        ("plain", 0),
        ("plain", 1),
        ("gradual-linear", 0),
    ]
    assert call(monkeypatch, study.main, *arguments) == 2
    assert "--resume" in capsys.readouterr().err

    def diverging(self, *args):
        if (self.method, self.run.path.name) == ("gradual-linear", "0.0001"):
            raise loop.Stopped("loss is not finite at step 3")
        return train(self, *args)

    monkeypatch.setattr(loop.Loop, "train", diverging)
    assert call(monkeypatch, study.main, *arguments, "--resume") == 0
    with (out / "digits.csv").open() as file:
        table = list(csv.DictReader(file))
    runs = [(row["part"], row["coupling"], row["method"], row["seed"], row["diverged"]) for row in table]
    assert runs == [
        *[
            ("coupling", "exact", name, str(s), "False")
            for name in ("plain", "gradual-linear")
            for s in range(3)
        ],
        ("rates", "independent", "gradual-self-paced", "0", "False"),
        ("rates", "independent", "gradual-linear", "0", "True"),
    ]
    assert all(float(row["final_w2"]) > 1 for row in table[:-1])
    assert not list(out.glob("*/*/checkpoints/*"))
    page = (out / "digits.md").read_text()
    assert "Stopped because samples or loss were not finite: gradual-linear at 0.0001." in page
    assert "8; coupling 6 (on 3 seeds), rates 2 (on 1 seeds)" in page
    assert call(monkeypatch, report, out, "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "digits.md").read_text() == page
    assert (tmp_path / "again" / "digits_rates.png").read_bytes() == (out / "digits_rates.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-seeds", "0"], "--num-seeds is 0; allowed is at least 1"),
        (["--run.steps", "70"], "--eval-every is 50; allowed is a divisor of steps=70"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, study.main, "digits", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_study_is_refused(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, report, tmp_path) == 2
    assert "holds no finished run of a study" in capsys.readouterr().err
