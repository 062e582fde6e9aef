"""The experiment on images: a network pretrained on one folder, fine-tuned on another, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from programs import call

import gft_jax as gft
from experiments import evaluate, report, sample, train
from experiments.configs import images
from experiments.configs.images import Images
from experiments.data.digit_images import write_digits
from experiments.images import task
from experiments.images.networks import pretrained
from gft_jax.data import inspection
from gft_jax.loading import describe_model
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


def to_new(*more):
    return ["--data", "digits/new", "--base", "base", *more]


def pretraining(*more):
    return ["--data", "digits/new", "--pretrain", *more]


@pytest.fixture
def others(inside):
    """More data beside the digits."""
    if not (inside / "four.npz").exists():
        rng = np.random.default_rng(0)
        write_digits(inside / "wide", side=4, num_per_class=2)
        for number in range(9):
            shutil.copytree(inside / "wide" / "new" / "5", inside / "wide" / f"x{number}")
        shutil.copytree(inside / "digits" / "new" / "5", inside / "partly" / "5")
        shutil.copytree(inside / "digits" / "new" / "6", inside / "partly" / "six")
        latents = rng.normal(size=(8, 4, 4, 4)).astype(np.float32)
        np.savez(inside / "four.npz", latents=latents, labels=np.zeros(8, int))
        np.savez(inside / "many.npz", latents=latents[..., :1], labels=np.full(8, 10))
        np.savez(inside / "plain.npz", latents=latents[..., :1])
    return inside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere", "--base", "base"], "--data is nowhere, which is no folder and no .npz file"),
        (["--base", "base"], "--data is not given; allowed is a folder of images, or a .npz file"),
        (["--data", "digits/new"], "--base is None; allowed is a folder, or else --pretrain"),
        (to_new("--pretrain"), "--base is base; allowed is a folder, or else --pretrain"),
        (["--data", "digits/new", "--base", "nowhere"], "--base is nowhere, and there is no such folder"),
        (["--data", "digits/new", "--base", "digits"], "it has no model.json"),
        (to_new("--base-method", "plain"), "--base-method is plain; base has: from-scratch, base"),
        (to_new("--path", "trigonometric"), "--path is trigonometric; allowed is that of base, linear"),
        (to_new("--size", "6"), "of shape (4, 4, 1), and --data holds such of (6, 6, 1)"),
        (to_new("--mode", "RGB"), "of shape (4, 4, 1), and --data holds such of (4, 4, 3)"),
        (["--data", "digits", "--base", "base", "--classes", *"abcdefghij"], "does not name new, old"),
        (to_new("--classes", *"abcdefghijk"), "names 11 classes, and the network of base has 10"),
        (
            ["--data", "wide", "--base", "base"],
            "have 11 classes (new, old, x0, x1, x2 and 6 more), and the network",
        ),
        (
            ["--data", "partly", "--base", "base"],
            "known are 5; unknown are six. Give the number of each: --classes",
        ),
        (["--data", "four.npz", "--base", "base"], "(4, 4, 1), and --data holds such of (4, 4, 4)"),
        (
            ["--data", "many.npz", "--base", "base"],
            "8 of 8 labels are out of range: rows [0, 1, 2, 3, 4] hold [10",
        ),
        (["--data", "plain.npz", "--base", "base", "--guidance", "2"], "1, since the data have no classes"),
        (
            ["--data", "plain.npz", "--base", "base", "--label-dropout", "0.2"],
            "0.1: the data have no classes",
        ),
        (
            to_new("--coupling", "semi-discrete"),
            "--coupling is semi-discrete, which does not respect classes",
        ),
        (to_new("--features", "nothing:here"), "--features is nothing:here, allowed is MODULE:FUNCTION"),
        (to_new("--guidance", "nan"), "--guidance is nan; allowed is a finite number"),
        (to_new("--lora-rank", "0"), "--lora-rank is 0; allowed is at least 1"),
        (
            to_new("--lora-rank", "2", "--lora-patterns", "*/qkv"),
            "the pattern '*/qkv' matches nothing; there are block_0",
        ),
        (to_new("--lora-rank", "2", "--methods", "l2-sp"), "with --lora-rank there are adapters alone"),
        (to_new("--remat"), "--remat is True; allowed is off: ResidualMLP has no such setting"),
        (to_new("--num-microbatches", "3"), "--num-microbatches is 3; allowed is a divisor of batch_size=64"),
        (
            pretraining("--network", "sit", "--patch-size", "3", "--hidden", "8"),
            "whose sides are multiples of patch_size=3",
        ),
        (pretraining("--hidden", "6"), "num_heads=4 does not divide the width 6"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(
    others, monkeypatch, capsys, arguments, message
):
    """And before more than one image is read."""
    looked = []
    reader = inspection._read
    monkeypatch.setattr(inspection, "_read", lambda path: looked.append(path) or reader(path))
    monkeypatch.setattr(images, "index_file_of", lambda folder, root: None)
    assert call(monkeypatch, train, "images", *arguments, "--out", "refused") == 2
    assert message in capsys.readouterr().err
    assert not (others / "refused").exists()
    assert len(looked) <= 1


@pytest.mark.parametrize(
    ("refused", "told", "accepted"),
    [
        ({"pretrain": True, "learning_rate": 1.0}, "--learning-rate is 1.0; .* at --base-learning-rate", {}),
        (
            {"base_learning_rate": 1.0},
            "from-scratch alone is trained at it",
            {"pretrain": True, "base": None},
        ),
        ({"pretrain": True, "base_every": 2}, "--base-every .*: --pretrain has no base", {"batch_size": 8}),
        (
            {"folder": "x.npz", "size": 8},
            "--size is 8; .* None: latents are taken as they are",
            {"folder": "x"},
        ),
        ({"folder": "x.npz", "mode": "L"}, "--mode is L; .* None: latents are taken", {"folder": "x"}),
        ({"layout": "nchw"}, "--layout is nchw; .* nhwc: it is that of latents", {"folder": "x.npz"}),
        ({"network": "sit"}, "--network is sit; .* unet: the network is that of --base", {"pretrain": True}),
        ({"hidden": 32}, "--hidden is 32; .* 64: the network is that of --base", {"pretrain": True}),
        (
            {"pretrain": True, "network": "sit", "attention": (4,)},
            "--attention is .* a setting of --network unet",
            {"network": "unet"},
        ),
        (
            {"pretrain": True, "network": "mlp", "multipliers": (1,)},
            "--multipliers is .* a setting of --network unet",
            {"network": "unet"},
        ),
        ({"pretrain": True, "patch_size": 4}, "--patch-size is 4; .* of --network sit", {"network": "sit"}),
        (
            {"pretrain": True, "network": "mlp", "num_heads": 2},
            "--num-heads is 2; .* has no attention",
            {"network": "sit"},
        ),
        ({"pretrain": True, "remat": True}, "--remat is True; .* of --network sit", {"network": "sit"}),
        ({"lora_alpha": 2.0}, "--lora-alpha is 2.0; .* without --lora-rank", {"lora_rank": 2}),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(refused, told, accepted):
    """And accepted where they count."""

    def config(**settings):
        base = None if settings.get("pretrain") else "base"
        return Images(**{"folder": "x", "base": base, **settings})

    with pytest.raises(ValueError, match=told):
        config(**refused).check()
    pretrains = {"pretrain": False} if "pretrain" in refused and "network" not in accepted else {}
    config(**refused | pretrains | accepted).check()


def test_images_that_do_not_fit_each_other_are_refused_before_a_run_is_made(
    inside, monkeypatch, capsys, tmp_path
):
    shutil.copytree(inside / "digits" / "new", tmp_path / "mixed")
    Image.new("L", (6, 6)).save(tmp_path / "mixed" / "9" / "z.png")
    run = ["--data", str(tmp_path / "mixed"), "--base", "base", "--out", str(tmp_path / "run")]
    assert call(monkeypatch, train, "images", *run) == 2
    assert "have 2 sizes (height x width): 4 x 4: 30 images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_only_all_data_show_is_refused_before_a_run_is_made(others, monkeypatch, capsys):
    latents = np.load(others / "plain.npz")["latents"]
    latents[5, 0, 0, 0] = np.nan
    np.savez(others / "broken.npz", latents=latents)
    for arguments, message in (
        (["--data", "broken.npz", "--base", "base"], "1 of 8 rows (the first: [5]): remove or repair"),
        (
            to_new("--features", "numpy:ravel"),
            "--features makes an array (32,) of 2 samples of shape (4, 4, 1)",
        ),
    ):
        assert call(monkeypatch, train, "images", *arguments, "--out", "refused") == 2
        assert message in capsys.readouterr().err
        assert not (others / "refused").exists()


def test_names_of_classes_outlive_a_run_on_data_without_classes(others):
    def names(**settings):
        return Images(base="base", **settings).task().facts["classes"]

    assert names(folder="plain.npz") == names(folder="digits/new") == DIGITS


def test_the_semi_discrete_coupling_is_for_data_that_are_held_at_once(others, monkeypatch):
    """Six images of 16 numbers are 384 bytes."""
    config = Images(folder="plain.npz", base="base", coupling="semi-discrete")
    monkeypatch.setattr(task, "IN_MEMORY", 384)
    assert len(config.data().target) == 6
    monkeypatch.setattr(task, "IN_MEMORY", 383)
    with pytest.raises(ValueError, match="semi-discrete, which holds all data of fine-tuning at once"):
        config.task()


@pytest.mark.parametrize(
    "condition", [{"cond_features": 3}, {"num_classes": {"kind": 2}}], ids=["vector", "labels by name"]
)
def test_a_base_with_another_condition_than_one_class_is_refused(tmp_path, condition):
    describe_model(tmp_path, gft.networks.ResidualMLP(hidden=8, depth=1, **condition), (4, 4, 1))
    [name] = condition
    with pytest.raises(ValueError, match=f"has {name}=.*: its condition is more than the class of an image"):
        pretrained(tmp_path, None)


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
@pytest.mark.parametrize(
    ("network", "how"),
    [
        ("sit --hidden 64 --depth 2", "--lora-rank 8 --learning-rate 4e-3"),
        ("unet --hidden 16 --depth 1 --multipliers 1 2", "--learning-rate 2e-3"),
    ],
    ids=["sit, adapters", "unet, all parameters"],
)
def test_a_network_learns_digits_and_then_others(monkeypatch, tmp_path, network, how):
    """Samples are near the data, and of the class that they are told: five classes, so that chance is 0.2."""
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "digits", side=8)
    common = ["--eval-every", "250", "--batch-size", "32", "--num-evaluated", "100", "--sampling-steps", "10"]
    common += ["--averaging", "0.98", "--guidance", "1.5"]
    pretrain = ["--data", "digits/old", "--pretrain", "--network", *network.split(), "--out", "base"]
    pretrain += ["--classes", *DIGITS, "--steps", "500", "--base-learning-rate", "3e-3"]
    assert call(monkeypatch, train, "images", *pretrain, *common) == 0
    tune = ["--data", "digits/new", "--base", "base", "--methods", "gradual-linear", "--out", "tuned"]
    assert call(monkeypatch, train, "images", *tune, "--steps", "500", *how.split(), *common) == 0
    energy, accuracy = {}, {}
    for run in ("base", "tuned"):
        rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        scores = [row for row in rows if row["kind"] == "evaluation"]
        energy[run], accuracy[run] = (
            [row[name] for row in scores] for name in ("energy_distance", "label_accuracy")
        )
    assert energy["base"][-1] < 0.05 * energy["base"][0]
    assert energy["tuned"][-1] < 0.2 * energy["tuned"][0]
    assert accuracy["tuned"][0] < 0.4
    assert min(accuracy["base"][-1], accuracy["tuned"][-1]) > 0.9


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
