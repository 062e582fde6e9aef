"""Runs on images that are continued and judged: by their own copy of the base, on the data that they were begun on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from programs import call

import gft_jax as gft
from experiments import evaluate, train
from experiments.data.digit_images import write_digits
from experiments.images.judging import GROUP
from experiments.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
DIGITS = [str(number) for number in range(10)]
SHORT = [
    *("--steps", "2", "--eval-every", "1", "--batch-size", "8"),
    *("--num-evaluated", "15", "--held-out", "0.5", "--sampling-steps", "2"),
]
PRETRAIN = [
    *("--data", "digits/old", "--pretrain", "--classes", *DIGITS),
    *("--network", "mlp", "--hidden", "8", "--depth", "1"),
]
TUNE = [
    *("--data", "digits/new", "--methods", "plain", "--learning-rate", "0.1", *SHORT),
    *("--guidance", "3", "--rows-at-once", "4"),
]
CARD = ["--nfe-steps", "1", "--nfe-solvers", "euler", "--num-halves", "2"]


class Killed(BaseException):
    """In the place of a SIGKILL: nothing in the program catches it."""


def fold(x):
    """Features of samples that are not their pixels."""
    return np.abs(np.asarray(x).reshape(len(x), -1)[:, :7])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Digits, a base, a run that fine-tunes it, and what is left of the same run killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", side=4, num_per_class=6)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        network = gft.networks.ResidualMLP(hidden=8, depth=1, num_classes=10)
        params = gft.loading.init_params(network, jax.random.key(0), (4, 4, 1))
        gft.loading.save_model("base", network, params, (4, 4, 1))
        (folder / "base" / "config.json").write_text(json.dumps({"methods": ["base"], "classes": DIGITS}))
        assert call(monkeypatch, train, "images", *TUNE, "--base", "base", "--out", "whole") == 0
        log = RunFolder.log

        def killed(self, rows):
            if any(row["kind"] == "train" and row["step"] == 2 for row in rows):
                raise Killed
            log(self, rows)

        monkeypatch.setattr(RunFolder, "log", killed)
        with pytest.raises(Killed):
            call(monkeypatch, train, "images", *TUNE, "--base", "base", "--out", "cut")
    return folder


@pytest.fixture
def inside(workspace, tmp_path, monkeypatch):
    """A copy of the workspace, to be damaged."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def retrain(base):
    """Another network at the place of the base."""
    model = json.loads((base / "model.json").read_text())
    model["settings"]["hidden"] = 16
    (base / "model.json").write_text(json.dumps(model))


def other_params(base):
    """The same network, trained otherwise."""
    for folder in (base / "params").iterdir():
        params = gft.load(base, "base").params
        shutil.rmtree(folder)
        gft.checkpoints.save_params(folder, jax.tree.map(lambda leaf: leaf + 1, params))


@pytest.mark.parametrize(
    "base", ["gone", *(pytest.param(each, marks=pytest.mark.slow) for each in ("there", "retrained"))]
)
def test_a_killed_run_is_continued_without_its_base(inside, monkeypatch, capsys, base):
    described = (inside / "cut" / "model.json").read_text()
    flags = []
    if base == "gone":
        shutil.rmtree(inside / "base")
    elif base == "retrained":
        retrain(inside / "base")
        flags = ["--base", "base"]
    assert call(monkeypatch, train, "images", *TUNE, *flags, "--out", "cut", "--resume") == 0
    assert "continues at step 1" in capsys.readouterr().out
    for averaged in (False, True):
        whole, cut = (gft.load(inside / name, averaged=averaged) for name in ("whole", "cut"))
        same(cut.params, whole.params)
        same(cut.base_params, whole.base_params)
    assert (inside / "cut" / "model.json").read_text() == described
    logs = [
        [json.loads(line) for line in (inside / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    whole, cut = ([row for row in rows if row["kind"] in ("evaluation", "floor", "best")] for rows in logs)
    assert cut == whole


def test_what_cannot_be_continued_is_refused(inside, monkeypatch, capsys):
    def refused(*flags):
        assert call(monkeypatch, train, "images", *TUNE, *flags) == 2
        return capsys.readouterr().err

    assert "--base is None" in refused("--out", "cut")
    assert "nothing to resume: nowhere" in refused("--out", "nowhere", "--resume")
    assert "base: there base, here other" in refused("--out", "cut", "--base", "other", "--resume")
    assert "base_method: there None, here base" in refused(
        "--out", "cut", "--base-method", "base", "--resume"
    )


@pytest.mark.slow
def test_a_run_that_lost_its_copy_needs_the_base_and_the_same_one(inside, monkeypatch, capsys):
    def refused():
        assert call(monkeypatch, train, "images", *TUNE, "--out", "cut", "--resume") == 2
        return capsys.readouterr().err

    shutil.rmtree(inside / "cut" / "params" / "base")
    kept = shutil.copytree(inside / "base", inside / "kept")
    other_params(inside / "base")
    assert "begun with another base than there is in base now" in refused()
    shutil.rmtree(inside / "base")
    assert "--base is base, and there is no such folder" in refused()
    kept.rename(inside / "base")
    assert call(monkeypatch, train, "images", *TUNE, "--out", "cut", "--resume") == 0
    same(gft.load(inside / "cut").params, gft.load(inside / "whole").params)


def test_changed_images_are_refused_with_what_differs(inside, monkeypatch, capsys):
    image = next((inside / "digits" / "new" / "5").iterdir())
    with Image.open(image) as opened:
        pixels = np.asarray(opened)
    Image.fromarray(255 - pixels).save(image)
    assert call(monkeypatch, train, "images", *TUNE, "--out", "cut", "--resume") == 2
    told = capsys.readouterr().err
    assert "cut was begun on other images" in told
    assert "contents: there" in told
    assert "names: there" not in told
    before = sorted((inside / "whole").rglob("*"))
    assert call(monkeypatch, evaluate, "whole", *CARD) == 2
    told = capsys.readouterr().err
    assert "whole was begun on other images" in told
    assert "contents: there" in told
    assert sorted((inside / "whole").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "",
        "--tolerance 0.01 --precision bfloat16 --features test_image_resume:fold",
        "--lora-rank 2 --guidance 1",
        "--raw --coupling exact",
    ],
)
def test_a_run_is_judged_as_it_judges_itself(inside, monkeypatch, more):
    if more:
        settings = [*TUNE, "--base", "base", *more.split()]
        assert call(monkeypatch, train, "images", *settings, "--out", "run") == 0
    else:
        (inside / "whole").rename(inside / "run")
    shutil.rmtree(inside / "base")
    assert call(monkeypatch, evaluate, "run", *CARD) == 0
    lines = [json.loads(line) for line in (inside / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in lines if row["kind"] == "evaluation"]
    (base, *_, last), (floor,) = evaluations, [row for row in lines if row["kind"] == "floor"]
    assert (base["method"], last["method"], last["step"]) == ("base", "plain", 2)
    name = "plain-seed0" + ("" if "--raw" in more else "-averaged")
    card = json.loads((inside / "run" / "cards" / name / "card.json").read_text())
    own = {measure["name"]: measure for measure in card["measures"] if measure["group"] == GROUP}
    assert {"w2", "diversity", "retention", "reached_weight", "training_energy_distance"} < set(own)
    for key, measure in own.items():
        assert measure["value"] == pytest.approx(last[key], rel=1e-5, abs=1e-6), key
        assert measure["base"] == pytest.approx(base[key], rel=1e-5, abs=1e-6), key
        if key in floor:
            assert measure["floor"] == pytest.approx(floor[key], rel=1e-6), key
    # The other measures are of the same samples: W2 in pixels, whatever the features.
    of_samples = {measure["name"]: measure for measure in card["measures"] if measure["group"] == "quality"}
    samples = np.load(inside / "run" / "samples.npz")
    assert card["num_samples"] == len(samples["real"]) == 15
    expected = gft.metrics.w2(samples["plain"], samples["real"])
    assert of_samples["w2"]["value"] == pytest.approx(expected, rel=1e-4)
    assert of_samples["w2"]["base"] == pytest.approx(
        gft.metrics.w2(samples["base"], samples["real"]), rel=1e-4
    )
    assert ("frechet_distance" in of_samples) == ("--features" in more)
    counted = round(last["num_evaluations"])
    assert abs(of_samples["w2"]["num_evaluations"] - counted) <= (2 if "--tolerance" in more else 0)
    assert own["w2"]["num_evaluations"] == counted
    assert "--tolerance" in more or counted == (2 if "--guidance 1" in more else 4)
    # Samples made otherwise are told apart by these numbers.
    loaded = gft.load(inside / "run")
    noise = jax.random.normal(jax.random.key(1), samples["real"].shape)
    labels = np.resize(np.arange(5, 10), 15)
    other = gft.sampling.sample_ode(loaded.drift, loaded.params, noise, cond=labels, num_steps=2).x
    assert gft.metrics.w2(other, samples["real"]) != pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_a_killed_pretraining_and_a_killed_fine_tuning_end_as_if_they_had_not_been(inside):
    long = ["--steps", "12", "--checkpoint-every", "2"]
    pretrain = [*PRETRAIN, *SHORT, *long, "--out", "first"]
    tune = [*TUNE, *long, "--out", "second"]

    def start(folder, arguments):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train", "images", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(folder, arguments):
        process = start(folder, arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
        return output

    def kill_after(folder, arguments, run, step):
        process = start(folder, arguments)
        while process.poll() is None and not list((folder / run).glob(f"checkpoints/*/{step}")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output[-3000:]

    whole, cut = inside / "uninterrupted", inside / "interrupted"
    for folder in (whole, cut):
        shutil.copytree(inside / "digits", folder / "digits")
    finish(whole, pretrain)
    finish(whole, [*tune, "--base", "first"])
    kill_after(cut, pretrain, "first", 4)
    assert "continues at step" in finish(cut, [*pretrain, "--resume"])
    kill_after(cut, [*tune, "--base", "first"], "second", 4)
    assert "continues at step" in finish(cut, [*tune, "--resume"])
    for run in ("first", "second"):
        for averaged in (False, True):
            a, b = (gft.load(folder / run, averaged=averaged) for folder in (whole, cut))
            same(b.params, a.params)
            same(b.base_params, a.base_params)
        scores = [
            [row for row in map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())]
            for folder in (whole, cut)
        ]
        a, b = ([row for row in rows if row["kind"] == "evaluation"] for rows in scores)
        assert a == b
        assert len(a) == 14
