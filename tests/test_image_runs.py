"""The experiment on images: a network pretrained on one folder, fine-tuned on another, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from programs import call

import gft_jax as gft
from experiments import evaluate, report, sample, train
from experiments.data.digit_images import write_digits
from gft_jax.networks.lora import LoRAParams

DIGITS = [str(number) for number in range(10)]
TINY = [
    *("--steps", "2", "--eval-every", "1", "--batch-size", "8"),
    *("--num-evaluated", "5", "--held-out", "0.5", "--sampling-steps", "2"),
]
MLP = ["--network", "mlp", "--hidden", "8", "--depth", "1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Folders of digits, a pretrained run and one that fine-tunes it."""
    folder = tmp_path_factory.mktemp("workspace")
    write_digits(folder / "digits", side=4, num_per_class=6)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        pretrain = ["--data", "digits/old", "--pretrain", *MLP, "--classes", *DIGITS, "--out", "base", *TINY]
        assert call(monkeypatch, train, "images", *pretrain) == 0
        tune = ["--data", "digits/new", "--base", "base", "--methods", "plain", "--out", "tuned", *TINY]
        assert call(monkeypatch, train, "images", *tune) == 0
    return folder


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_base_is_the_average_of_the_run_that_pretrained_it(inside):
    pretrained = gft.load(inside / "base")
    raw = gft.load(inside / "base", averaged=False)
    tuned = gft.load(inside / "tuned")
    same(tuned.base_params, pretrained.params)
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (raw.params, pretrained.params)), strict=True)
    )
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (tuned.params, pretrained.params)), strict=True)
    )
    assert tuned.event_shape == (4, 4, 1)


def test_what_is_loaded_is_what_the_report_scores(inside):
    """The average here; and of the best checkpoint that alone."""
    run = inside / "tuned"
    loaded = gft.load(run)
    assert loaded.averaged
    same(loaded.params, gft.load(run, averaged=True).params)
    raw = gft.load(run, averaged=False)
    assert not raw.averaged
    assert any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (raw.params, loaded.params)), strict=True)
    )
    assert not gft.load(run, "base").averaged
    best = gft.load(run, checkpoint="best")
    assert best.averaged
    same(best.params, gft.load(run, averaged=True, checkpoint="best").params)
    with pytest.raises(ValueError, match=r"chosen by its averaged parameters.*or for raw ones, not for both"):
        gft.load(run, averaged=False, checkpoint="best")


def test_samples_are_of_the_parameters_that_are_asked_for(inside, monkeypatch, capsys):
    few = ["--num-samples", "2", "--num-steps", "2"]
    noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    for flags, averaged, name in (([], True, "plain-averaged"), (["--raw"], False, "plain")):
        assert call(monkeypatch, sample, "tuned", *few, *flags) == 0
        drawn = np.load(inside / "tuned" / "samples" / f"{name}-euler2-2-noise0" / "samples.npy")
        loaded = gft.load(inside / "tuned", averaged=averaged)
        cond = np.arange(2)
        expected = gft.sampling.sample_ode(loaded.drift, loaded.params, noise, cond=cond, num_steps=2).x
        np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-6)
    for program in (sample, evaluate):
        assert call(monkeypatch, program, "tuned", "--raw", "--averaged") == 2
        assert "exclude each other" in capsys.readouterr().err


def test_classes_are_those_of_the_base_and_samples_go_through_them(inside):
    config = json.loads((inside / "tuned" / "config.json").read_text())
    assert config["classes"] == DIGITS
    assert config["shown_classes"] == ["5", "6", "7", "8", "9"]
    assert config["num_target"] == 15
    samples = np.load(inside / "tuned" / "samples.npz")
    assert {name: samples[name].shape for name in samples.files} == dict.fromkeys(
        ("real", "base", "plain"), (5, 4, 4, 1)
    )
    # The drift is told the label: samples of another class from the same noise are others.
    loaded = gft.load(inside / "base")
    noise = np.ones((1, 4, 4, 1), np.float32)
    of = [
        gft.sampling.sample_ode(loaded.drift, loaded.params, noise, cond=np.array([label]), num_steps=2).x
        for label in (0, 1)
    ]
    assert np.any(of[0] != of[1])


def test_the_report_shows_samples_by_step(inside):
    page = (inside / "tuned" / "report.html").read_text()
    assert "Samples by step" in page
    assert "Missing or doubtful" not in page
    shutil.copytree(inside / "tuned", inside / "again")
    before = (inside / "tuned" / "images_by_step.png").read_bytes()
    (inside / "again" / "images_by_step.png").unlink()
    report.main([str(inside / "again")])
    assert (inside / "again" / "images_by_step.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere", "--base", "base"], "no folder and no .npz file"),
        (["--data", "digits/new"], "--base is None"),
        (["--data", "digits/new", "--base", "base", "--pretrain"], "--pretrain"),
        (["--data", "digits/new", "--base", "nowhere"], "no such folder"),
        (["--data", "digits/new", "--base", "digits"], "it has no model.json"),
        (["--data", "digits/new", "--base", "base", "--base-method", "plain"], "has: from-scratch, base"),
        (["--data", "digits/new", "--base", "base", "--path", "trigonometric"], "that of base, linear"),
        (["--data", "digits/new", "--base", "base", "--size", "6"], "(6, 6, 1)"),
        (["--data", "digits/new", "--base", "base", "--mode", "RGB"], "(4, 4, 3)"),
        (["--data", "digits", "--base", "base", "--classes", *"abcdefghijk"], "does not name"),
        (["--data", "wide", "--base", "base"], "10"),
        (["--data", "four.npz", "--base", "base"], "(4, 4, 4)"),
        (["--data", "many.npz", "--base", "base"], "10"),
        (["--data", "plain.npz", "--base", "base", "--guidance", "2"], "1, without classes"),
        (
            ["--data", "digits/new", "--base", "base", "--coupling", "semi-discrete"],
            "does not respect classes",
        ),
        (["--data", "digits/new", "--base", "base", "--features", "nothing:here"], "MODULE:FUNCTION"),
        (["--data", "digits/new", "--base", "base", "--lora-rank", "2", "--lora-patterns", "*/qkv"], "*/qkv"),
        (["--data", "digits/new", "--base", "base", "--lora-alpha", "2"], "--lora-rank"),
        (
            ["--data", "digits/new", "--base", "base", "--lora-rank", "2", "--methods", "l2-sp"],
            "adapters alone",
        ),
        (["--data", "digits/new", "--base", "base", "--remat"], "has no such setting"),
        (["--data", "digits/new", "--base", "base", "--num-microbatches", "3"], "a divisor of batch_size"),
        (
            ["--data", "digits/new", "--pretrain", "--network", "sit", "--patch-size", "3", "--hidden", "8"],
            "patch",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(
    inside, monkeypatch, capsys, arguments, message
):
    if not (inside / "four.npz").exists():
        rng = np.random.default_rng(0)
        write_digits(inside / "wide", side=4, num_per_class=2)
        for number in range(9):
            shutil.copytree(inside / "wide" / "new" / "5", inside / "wide" / f"x{number}")
        latents = rng.normal(size=(8, 4, 4, 4)).astype(np.float32)
        np.savez(inside / "four.npz", latents=latents, labels=np.zeros(8, int))
        np.savez(inside / "many.npz", latents=latents[..., :1], labels=np.full(8, 10))
        np.savez(inside / "plain.npz", latents=latents[..., :1])
    assert call(monkeypatch, train, "images", *arguments, "--out", "refused") == 2
    assert message in capsys.readouterr().err
    assert not (inside / "refused").exists()


def test_a_run_is_not_continued_on_other_images(inside, monkeypatch, capsys):
    shutil.copytree(inside / "tuned", inside / "moved")
    shutil.copytree(inside / "digits", inside / "kept")
    removed = next((inside / "digits" / "new" / "5").iterdir())
    removed.unlink()
    tune = ["--data", "digits/new", "--base", "base", "--methods", "plain", "--out", "moved", *TINY]
    try:
        assert call(monkeypatch, train, "images", *tune, "--resume") == 2
    finally:
        shutil.copytree(inside / "kept", inside / "digits", dirs_exist_ok=True)
    assert "begun on other images" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "--lora-rank 2 --methods gradual-linear",
        "--precision bfloat16 --num-microbatches 2 --flip --coupling exact --coupled-batches 2 --raw",
        "--methods prior-preservation distillation --controls.num-replay 8 --tolerance 0.1 --guidance 2",
        "--coupling base-exact --methods gradual-self-paced",
    ],
)
def test_a_run_that_was_cut_short_ends_as_one_that_was_not(inside, monkeypatch, tmp_path, more):
    settings = [
        "--data",
        "digits/new",
        "--base",
        "base",
        *TINY,
        "--steps",
        "4",
        "--checkpoint-every",
        "2",
        *more.split(),
    ]
    if "--methods" not in more:
        settings += ["--methods", "plain"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert call(monkeypatch, train, "images", *settings, "--out", whole) == 0
    shutil.copytree(whole, cut)
    for folder in (cut / "params").iterdir():
        if folder.name != "base":
            shutil.rmtree(folder)
    for folder in (cut / "checkpoints").iterdir():
        shutil.rmtree(folder / "4")
    assert call(monkeypatch, train, "images", *settings, "--out", cut, "--resume") == 0
    method = json.loads((whole / "config.json").read_text())["methods"][0]
    for averaged in (False, True):
        a, b = (gft.load(run, method, averaged=averaged) for run in (whole, cut))
        same(a.params, b.params)
    assert isinstance(a.params, LoRAParams) == ("lora" in more)


def test_a_class_that_the_network_does_not_know_is_not_sampled(inside, monkeypatch, capsys):
    for more in (["--label", "10"], ["--label", "-1"]):
        assert call(monkeypatch, sample, "tuned", *more) == 2
        assert "allowed is 0 to 9" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_and_cards_of_a_run_with_classes(inside, monkeypatch):
    few = ["--num-samples", "4", "--num-steps", "2"]
    for more in (
        [],
        ["--label", "5"],
        ["--label", "5", "--guidance", "0"],
        ["--label", "6", "--guidance", "0"],
    ):
        assert call(monkeypatch, sample, "base", *few, *more) == 0
    drawn = {path.parent.name: np.load(path) for path in (inside / "base" / "samples").glob("*/samples.npy")}
    assert len(drawn) == 4
    unguided = [drawn[name] for name in drawn if "guidance0" in name]
    np.testing.assert_array_equal(*unguided)
    a, b = (drawn[name] for name in drawn if "guidance0" not in name)
    assert np.any(a != b)


@pytest.mark.slow
def test_a_card_of_a_run_with_classes(inside, monkeypatch, tmp_path):
    run = tmp_path / "run"
    tune = ["--data", "digits/new", "--base", "base", "--methods", "plain", *TINY, "--num-evaluated", "15"]
    assert call(monkeypatch, train, "images", *tune, "--out", run) == 0
    small = ["--num-steps", "2", "--nfe-steps", "1", "--nfe-solvers", "euler", "--num-halves", "2"]
    assert call(monkeypatch, evaluate, run, *small) == 0
    assert json.loads((run / "cards" / "plain-seed0-averaged" / "card.json").read_text())["averaged"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    ["sit --hidden 32 --depth 2", "unet --hidden 16 --depth 1 --multipliers 1 2"],
    ids=["sit", "unet"],
)
def test_a_network_learns_digits_and_then_others(monkeypatch, tmp_path, network):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "digits", side=8)
    common = ["--eval-every", "100", "--batch-size", "32", "--num-evaluated", "50", "--sampling-steps", "10"]
    common += ["--averaging", "0.98"]
    pretrain = ["--data", "digits/old", "--pretrain", "--network", *network.split(), "--out", "base"]
    pretrain += ["--steps", "300", "--base-learning-rate", "3e-3"]
    assert call(monkeypatch, train, "images", *pretrain, *common) == 0
    tune = ["--data", "digits/new", "--base", "base", "--methods", "gradual-linear", "--out", "tuned"]
    tune += ["--steps", "200", "--learning-rate", "2e-3"]
    assert call(monkeypatch, train, "images", *tune, *common) == 0
    reached = {}
    for run in ("base", "tuned"):
        rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        reached[run] = [row["energy_distance"] for row in rows if row["kind"] == "evaluation"]
    assert reached["base"][-1] < 0.1 * reached["base"][0]
    assert reached["tuned"][-1] < 0.5 * reached["tuned"][0]


@pytest.mark.slow
def test_an_adapted_run_is_a_base_by_its_merged_parameters(inside, monkeypatch, tmp_path):
    tune = ["--data", "digits/new", "--base", "base", "--methods", "plain", *TINY]
    adapted = tmp_path / "adapted"
    assert call(monkeypatch, train, "images", *tune, "--lora-rank", "2", "--out", adapted) == 0
    again = tmp_path / "again"
    tune[3] = str(adapted)
    assert call(monkeypatch, train, "images", *tune, "--out", again) == 0
    loaded, taken = gft.load(adapted, averaged=True), gft.load(again, "base")
    assert loaded.lora is not None
    same(taken.params, loaded.lora.merge(*loaded.params))
    assert call(monkeypatch, sample, str(adapted), "--num-samples", "4", "--num-steps", "2") == 0
