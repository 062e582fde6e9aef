"""The study: its statistics against known numbers, its page on made-up runs, and a tiny study end to end."""

import csv
import json
import re
import shlex

import numpy as np
import pytest
from programs import call

from experiments import loop
from experiments.study import __main__ as study
from experiments.study import cells, plan, report
from experiments.study.figures import study_figures
from experiments.study.measures import of_curve, until_weight
from experiments.study.page import study_page
from experiments.study.paired import paired_difference
from experiments.study.runs import GroupFacts, StudyRun, differences_as_csv, read_study
from experiments.study.tables import ranks_by_seed
from experiments.summary import read_metrics

TINY = shlex.split(
    "digits --num-seeds 3 --few-seeds 1 --run.steps 4 --run.eval-every 2 --run.base-steps 2 --run.hidden 8 "
    "--run.depth 1 --run.batch-size 8 --run.sampling-steps 2 --run.controls.num-replay 8"
)


# Paired differences


def test_intervals_cover_the_true_mean_at_their_level_and_pairing_removes_what_seeds_share():
    rng = np.random.default_rng(0)
    levels, num_trials = (0.85, 0.95, 0.99), 400
    covered, decided = dict.fromkeys(levels, 0), 0
    for _ in range(num_trials):
        shared = rng.normal(0.0, 5.0, 10)
        ours = dict(enumerate(shared + rng.normal(0.5, 0.3, 10)))
        for level in levels:
            difference = paired_difference(ours, dict(enumerate(shared)), level)
            covered[level] += difference.low <= 0.5 <= difference.high
        decided += paired_difference(ours, dict(enumerate(shared))).sign == 1
    coverage = {level: count / num_trials for level, count in covered.items()}
    # Three standard errors of 400 trials are 0.033; the levels beside it would not pass as 95 %.
    assert coverage[0.95] == pytest.approx(0.95, abs=0.033)
    assert coverage[0.85] < 0.917
    assert coverage[0.99] > 0.983
    assert decided / num_trials > 0.95  # power: 0.5 is small beside the spread of 5 between seeds


def test_paired_difference_takes_the_seeds_in_common_and_gives_no_interval_for_few():
    difference = paired_difference({0: 1.0, 1: 3.0, 5: 9.0}, {1: 1.0, 0: 0.0, 7: 2.0})
    assert difference == (1.5, None, None, 2)
    assert difference.sign is None
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({0: np.nan, 1: 1.0}, {0: 1.0, 1: 1.0}) is None
    equal = dict.fromkeys(range(8), 0.5)
    assert paired_difference(equal, dict.fromkeys(range(8), 0.25)) == (0.25, 0.25, 0.25, 8)


# Curves


def curve(**columns):
    keys = columns.keys()
    return [dict(zip(keys, point, strict=True)) for point in zip(*columns.values(), strict=True)]


def test_measures_of_a_curve():
    steps = np.arange(0, 1001, 50)
    energy = np.where(steps < 200, 1.0 - steps / 200, 0.05 + 0.01 * (steps // 50 % 2))
    w2 = np.concatenate([[4.0], 2.0 + 0.1 * (np.arange(20) % 2)])
    numbers = of_curve(curve(step=steps, w2=w2, energy_distance=energy, reached_weight=steps / 1000), 0.9)
    late = [0.05, 0.06, 0.05]
    assert numbers["late_energy_distance"] == pytest.approx(np.mean(late))
    assert numbers["late_w2"] == pytest.approx(np.mean([2.1, 2.0, 2.1]))
    assert numbers["late_weight"] == pytest.approx(0.95)
    assert numbers["steps_to_tenth"] == 200  # a tenth of the base's, 0.09; not of its own start, 1.0
    assert numbers["descending_spearman"] == pytest.approx(-1.0)
    assert numbers["settled_variance"] == pytest.approx(0.01)
    assert numbers["variance_without_first"] == pytest.approx(np.var(np.diff(w2[1:])))
    assert abs(numbers["settled_spearman"]) < 0.5
    risen = curve(step=[0, 50], w2=[1.0, 1.0], energy_distance=[1.0, 1.0], reached_weight=[0.0, 0.1])
    assert of_curve(risen, 0.9).keys() == {"late_w2", "late_energy_distance", "late_weight"}


def test_curves_are_read_where_the_reached_weight_first_crosses_a_level():
    points = curve(
        step=(0, 50, 100, 150, 200),
        reached_weight=(0.1, 0.3, 0.49, 0.45, 0.95),
        w2=(4.0, 3.0, 2.0, 9.0, 1.0),
        energy_distance=(1.0, 0.5, 0.07, 0.3, 0.0),
    )
    share = 0.1 / 0.19
    assert until_weight(points, 0.4) == pytest.approx(
        {
            "step": 50 + 50 * share,
            "late_w2": 3.0 - share,
            "late_energy_distance": 0.5 - share * 0.43,
            "spearman_energy_distance": -1.0,
            "variance_of_w2_increments": 0.0,
        }
    )
    assert until_weight(points, 0.9) == {}  # jumped over
    assert until_weight(points, 0.99) == {}  # never reached
    assert until_weight(points, 0.05) == {}  # there from the start: an untrained network has any weight


# The page, on runs whose differences are known


SEEDS = tuple(range(8))


def run(method, seed, part="controls", group="all", rate=1e-4, diverged=False, points=None, **numbers):
    settings = ("unseen-classes", 512, "exact" if part == "coupling" else "independent", rate)
    numbers = {} if diverged else numbers
    return StudyRun(part, group, *settings, method, seed, diverged, points or [], numbers)


def facts(part, group, methods, **config):
    settings = {
        "methods": methods,
        "seeds": list(SEEDS),
        "controls": {"l2_sp": 0.1},
        "steps": 2000,
        "learning_rate": 1e-4,
        "eval_every": 50,
        "sampling_steps": 100,
        "base_learning_rate": 1e-3,
        "shift": "unseen-classes",
        "num_target": 512,
        "coupling": "independent",
    }
    command = "python -m experiments.study digits --few-seeds 2 --out some/where --resume"
    references = {"base w2": 4.4, "base energy_distance": 0.41, "floor w2": 2.7}
    return GroupFacts(part, group, settings | config, command, references)


def ramp(seed):
    """A run of gradual-linear whose weight rises by 0.1 an evaluation, and W2 falls by 0.1."""
    weight = np.arange(11) / 10
    return curve(
        step=50 * np.arange(11),
        reached_weight=weight,
        w2=4.0 - weight + 0.001 * seed,
        energy_distance=1.0 - weight,
    )


def made_up():
    """Gradual-linear is lower than plain in W2, higher in energy distance, and not told apart in retention."""
    rng = np.random.default_rng(0)
    found = []
    for seed in SEEDS:
        noise = rng.normal(0.0, 0.01, 3)
        common = {
            "spearman_energy_distance": -0.9,
            "variance_of_w2_increments": 1e-3,
            "late_energy_distance": 0.02,
            "path_length": 9.0,
        }
        late = {"late_w2": 3.2, "late_weight": 0.55 + 0.01 * seed}
        found += [
            run("plain", seed, final_w2=3.0 + 0.1 * seed, energy_distance=0.02, retention=4.0, **common, **late),
            run("gradual-linear", seed, points=ramp(seed), final_w2=2.9 + 0.1 * seed + noise[0],
                energy_distance=0.03 + 0.1 * noise[1], retention=4.0 + noise[2], **common, late_w2=3.0 + noise[0]),
            run("l2-sp", seed, points=ramp(seed), diverged=True),
            run("plain", seed, part="coupling", group="exact", path_length=8.5 + noise[0]),
        ]  # fmt: skip
    return found


GROUPS = [
    facts("controls", "all", ["plain", "gradual-linear", "l2-sp"]),
    facts("coupling", "exact", ["plain", "gradual-linear"]),
]


def line_with(page, start):
    (line,) = [line for line in page.splitlines() if line.startswith(start)]
    return line


def test_the_page_says_what_the_differences_are():
    page = study_page(GROUPS, made_up())
    assert "`python -m experiments.study digits --few-seeds 2`, then" in page
    assert "**holds**" in line_with(page, "* W2 at the last evaluation is lower:")
    assert "the opposite does" in line_with(page, "* Energy distance at the last evaluation is lower:")
    assert "**not decided**. " in line_with(page, "* The drift ends closer")
    assert "not enough seeds in common" in line_with(page, "* A tenth of the base's")
    assert "**holds**" in line_with(page, "* The paths are shorter, plain")
    assert line_with(page, "* Late W2 of").endswith(
        "is lower than under plain; without enough seeds in common with l2-sp."
    )
    assert line_with(page, "| W₂ ↓").endswith("| **lower** |")
    assert line_with(page, "| energy distance ↓").endswith("| **higher** |")
    assert line_with(page, "| distance to base drift ↓").endswith("| not decided |")
    row = line_with(page, "| plain | 9.000")
    assert re.match(
        r"\| plain \| 9\.000 ± 0\.000 to 8\.[45]\d\d ± .*: -0\.[45]\d\d \[.*\] \*\*lower\*\*", row
    )
    assert line_with(page, "| path length, plain, exact OT").endswith("| yes |")
    assert (
        "* controls/all, l2-sp: stopped, as loss or samples were not finite, seeds 0, 1, 2, 3, 4, 5, 6, 7."
        in page
    )
    assert "* coupling/exact, gradual-linear: not ended, seeds 0, 1, 2, 3, 4, 5, 6, 7." in page
    (verdicts,) = [line for line in page.splitlines() if line.startswith("The tables give")]
    tables = [line for line in page.splitlines() if line.startswith("|")]
    told = sum(line.count(word) for line in tables for word in ("**lower**", "**higher**", "not decided"))
    assert verdicts.startswith(f"The tables give {told} verdicts")


def test_the_page_compares_where_the_same_weight_is_reached():
    page = study_page(GROUPS, made_up())
    (row,) = [line for line in page.splitlines() if line.startswith("| plain | 0.585 ± 0.024")]
    # On its way down gradual-linear has W2 = 4 - w and energy distance 1 - w; plain ends at 3.2 and 0.02.
    weights = 0.55 + 0.01 * np.arange(8)
    _, _, _, step, w2, energy, *_ = row.split("|")
    assert float(step) == pytest.approx(np.mean(weights) * 500, abs=0.6)
    assert float(w2.split()[0]) == pytest.approx(np.mean(4 - weights + 0.001 * np.arange(8)) - 3.2, abs=1e-3)
    assert "**higher**" in w2
    assert float(energy.split()[0]) == pytest.approx(np.mean(1 - weights) - 0.02, abs=1e-3)


def test_seeds_that_lack_are_left_out_and_counted():
    found = [run for run in made_up() if (run.method, run.seed, run.part) != ("plain", 3, "controls")]
    row = line_with(study_page(GROUPS, found), "| W₂ ↓")
    assert "(n = 7)" in row.split("|")[2]
    assert "(n = 7)" in row.split("|")[4]
    assert "(n =" not in row.split("|")[3]


def test_differences_to_plain_are_a_tidy_table():
    rows = list(csv.DictReader(differences_as_csv(made_up()).splitlines()))
    assert {row["method"] for row in rows} == {"gradual-linear"}
    (row,) = [row for row in rows if row["measure"] == "final_w2"]
    found = made_up()
    ours, theirs = (
        [run.numbers["final_w2"] for run in found if (run.method, run.part) == (m, "controls")]
        for m in ("gradual-linear", "plain")
    )
    assert float(row["minus_plain"]) == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert float(row["low"]) < float(row["minus_plain"]) < float(row["high"]) < 0
    assert row["seeds"] == "8"


def test_ranks_are_by_seed_and_a_diverged_run_ranks_last():
    def schedules(seed, self_paced, linear, fast):
        names = ("gradual-self-paced", "gradual-linear", "gradual-fast")
        return [
            run(
                name,
                seed,
                part="rates",
                diverged=value is None,
                **({} if value is None else {"final_w2": value}),
            )
            for name, value in zip(names, (self_paced, linear, fast), strict=True)
        ]

    assert ranks_by_seed(schedules(0, 1.0, 2.0, 3.0) + schedules(1, 2.5, 2.0, 3.0), "final_w2") == [1, 2]
    assert ranks_by_seed(schedules(0, None, 2.0, 3.0), "final_w2") == [3]
    assert ranks_by_seed(schedules(0, None, 2.0, None), "final_w2") == [3]
    assert ranks_by_seed(schedules(0, 2.0, None, 3.0), "final_w2") == [1]
    assert ranks_by_seed(schedules(0, 1.0, 2.0, 3.0)[1:], "final_w2") == []


def test_an_interval_has_decimals_enough_to_be_told_from_zero():
    difference = paired_difference({s: 2e-4 + 1e-5 * s for s in SEEDS}, dict.fromkeys(SEEDS, 0.0))
    text = cells.interval(difference, "final_w2")
    assert text.startswith("0.0002")
    assert "[0.0002" in text


def test_figures_are_made_of_what_there_is():
    found = [*made_up(), *(run("gradual-self-paced", s, part="rates", energy_distance=-0.01) for s in SEEDS)]
    found = [entry._replace(curve=ramp(entry.seed)) for entry in found]
    figures = study_figures(found)
    assert list(figures) == ["digits_curves", "digits_differences", "digits_rates"]
    labels = [text.get_text() for text in figures["digits_differences"].axes[0].get_yticklabels()]
    assert labels == ["plain"]  # what diverged has no difference
    below = figures["digits_rates"].axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(below, [1e-3])  # an unbiased estimate below zero, on a logarithmic axis
    assert study_figures([run("plain", 0, diverged=True)]) == {}


# A tiny study


@pytest.mark.slow
def test_a_tiny_study_is_interrupted_resumed_and_written_up(tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    arguments = (*TINY, "--parts", "controls", "rates", "--out", out)
    monkeypatch.setattr(plan, "CONTROLS", ("plain", "gradual-linear"))
    monkeypatch.setattr(plan, "SCHEDULES", ("gradual-self-paced", "gradual-linear"))
    monkeypatch.setattr(plan, "RATES", (1e-4,))
    train = loop.Loop.train
    trained = []

    def interrupted(self, *args):
        if (self.method, self.seed) == ("gradual-linear", 1):
            raise KeyboardInterrupt
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "train", interrupted)
        assert call(monkeypatch, study, *arguments) == 130
    assert [(run.method, run.seed) for run in read_study(out)[1]] == [
        ("plain", 0),
        ("plain", 1),
        ("gradual-linear", 0),
    ]
    assert call(monkeypatch, study, *arguments) == 2
    assert "--resume" in capsys.readouterr().err

    def diverging(self, *args):
        trained.append((self.method, self.seed, self.run.path.name))
        if (self.method, self.run.path.name) == ("gradual-linear", "0.0001"):
            raise loop.Stopped("loss is not finite at step 3")
        return train(self, *args)

    monkeypatch.setattr(loop.Loop, "train", diverging)
    assert call(monkeypatch, study, *arguments, "--resume") == 0
    with (out / "digits.csv").open() as file:
        table = list(csv.DictReader(file))
    runs = [(row["part"], row["method"], row["seed"], row["diverged"]) for row in table]
    assert runs == [
        *[("controls", name, str(s), "False") for name in ("plain", "gradual-linear") for s in range(3)],
        ("rates", "gradual-self-paced", "0", "False"),
        ("rates", "gradual-linear", "0", "True"),
    ]
    logged = {
        (row["method"], row["seed"]): row["w2"]
        for row in read_metrics(out / "controls" / "all")
        if row["kind"] == "evaluation" and row["step"] == 4
    }
    written = {(row["method"], int(row["seed"])): float(row["final_w2"]) for row in table[:6]}
    assert written == logged
    assert not list(out.glob("*/*/checkpoints/*"))
    page = (out / "digits.md").read_text()
    assert "* rates/0.0001, gradual-linear: stopped, as loss or samples were not finite, seeds 0." in page
    assert "8 runs have ended: 6 of controls, 2 of rates." in page
    assert call(monkeypatch, report, out, "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "digits.md").read_text() == page
    assert (tmp_path / "again" / "digits_rates.png").read_bytes() == (out / "digits_rates.png").read_bytes()
    trained.clear()
    assert call(monkeypatch, study, *arguments, "--resume") == 0
    assert trained == []  # neither what has ended nor what diverged is trained again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-seeds", "0"], "--num-seeds is 0; allowed is at least 1"),
        (["--run.steps", "70"], "--eval-every is 50; allowed is a divisor of steps=70"),
        (["--parts", "rates", "rates"], "--parts is ('rates', 'rates'); allowed is at least one, each once"),
        (["--run.shift", "rotation"], "--run.shift is rotation; allowed is left to the study"),
        (["--resume", "--out", "nothere"], "nothing to resume: there is no nothere"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, study, "digits", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_study_is_refused(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, report, tmp_path) == 2
    assert "holds no finished run of a study" in capsys.readouterr().err
    other = tmp_path / "digits" / "001"
    other.mkdir(parents=True)
    (other / "config.json").write_text(json.dumps({"config": {}}))
    (other / "metrics.jsonl").write_text("")
    assert call(monkeypatch, report, tmp_path) == 2
    assert "001 is not a group of a study (KeyError: 'part')" in capsys.readouterr().err
