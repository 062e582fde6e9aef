"""A SiT in the forms that settings of a run give it: split over devices, its blocks in a loop, attention fused."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import call, on_fake_devices

import gft_jax as gft
from experiments import train
from experiments.data.digit_images import write_digits
from experiments.devices import fuses_attention, runner_of
from experiments.images.bench import ImageBench
from gft_jax.loading import described_model, init_params, save_model

SIT = gft.networks.SiT(hidden_size=16, depth=2, num_heads=2, patch_size=2, num_classes=10)
SHAPE = (4, 4, 1)
TINY = [
    *("--steps", "2", "--eval-every", "2", "--batch-size", "8", "--methods", "plain"),
    *("--num-evaluated", "5", "--held-out", "0.5", "--sampling-steps", "2", "--clip", "None"),
]


def random_params(module):
    """Parameters none of which is zero, as the gates of fresh ones are."""
    fresh = init_params(module, jax.random.key(0), SHAPE)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits, and a SiT that was kept."""
    folder = tmp_path_factory.mktemp("forms")
    write_digits(folder / "digits", side=4, num_per_class=4)
    save_model(folder / "base", SIT, random_params(SIT), SHAPE)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return ["images", "--data", "digits/new", "--base", "base", *TINY]


def test_parameters_of_a_sit_are_split_by_its_own_rule(monkeypatch):
    monkeypatch.setattr(gft.parallel, "mesh", lambda fsdp: fsdp)
    monkeypatch.setattr(gft.parallel, "sharded", lambda tuner, mesh, rule: (mesh, rule))
    config, tuner = SimpleNamespace(parallel="sharded", fsdp=4), None
    mesh, rule = runner_of(config, tuner, SIT)
    assert mesh == 4
    by_width = gft.parallel.over_fsdp(4)
    for name, shape, spec in (
        (".params['blocks_0']['qkv']['kernel']", (512, 512), PartitionSpec(None, "fsdp")),
        (".params['blocks']['fc1']['kernel']", (4096, 64, 64), PartitionSpec(None, None, "fsdp")),
    ):
        assert rule(name, shape) == spec != by_width(name, shape)
    assert runner_of(config, tuner, gft.networks.ResidualMLP(hidden=8, depth=1)) == (4, None)


@pytest.mark.parametrize(
    ("module", "platform", "capability", "fuses"),
    [
        (SIT, "gpu", "9.0", True),
        (SIT, "gpu", "8.0", True),
        (SIT, "gpu", "10.3", True),
        (SIT, "gpu", "7.5", False),
        (SIT, "gpu", "gfx90a", False),
        (SIT, "cpu", None, False),
        (SIT.clone(num_heads=4), "gpu", "9.0", False),
        (gft.networks.SiT(288, 1, 2, 2), "gpu", "9.0", False),
        (gft.networks.SiT.preset("XL/2"), "gpu", "9.0", True),
        (gft.networks.UNet(channels=32), "gpu", "9.0", False),
    ],
)
def test_attention_is_fused_where_cudnn_takes_it(module, platform, capability, fuses):
    device = SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    assert fuses_attention(module, device) == fuses


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["--precision", "bfloat16"], "cudnn"),
        (["--precision", "bfloat16", "--lora-rank", "2"], "cudnn"),
        (["--precision", "bfloat16", "--no-fused-attention"], "xla"),
        ([], "xla"),
    ],
)
def test_a_run_takes_fused_attention_in_half_precision(inside, monkeypatch, flags, asked):
    config = train.parse([*inside, *flags])
    task = config.task()
    params = init_params(task.module, jax.random.key(0), SHAPE)
    if task.lora is not None:
        params = task.lora.adapter.apply(task.lora.adapter.init(jax.random.key(1), params), params)
    called, attention = [], jax.nn.dot_product_attention

    def noted(*arguments, implementation):
        called.append(implementation)
        return attention(*arguments, implementation="xla")

    with monkeypatch.context() as as_on_gpu:
        as_on_gpu.setattr("experiments.images.bench.fuses_attention", lambda module, device: True)
        as_on_gpu.setattr(jax, "default_backend", lambda: "gpu")
        as_on_gpu.setattr(jax.nn, "dot_product_attention", noted)
        bench = ImageBench(config, task)
        jax.eval_shape(bench.drift, params, jnp.zeros(2), jnp.zeros((2, *SHAPE)), jnp.zeros(2, int))
    assert called == [asked] * SIT.depth
    assert bench.module == SIT


@pytest.mark.slow
def test_blocks_in_a_loop_go_on_from_a_base_without(inside, monkeypatch, folder, capsys):
    train.adapt(train.parse([*inside, "--scan", "--out", "looped"]))
    kept = described_model("looped").module
    assert kept == SIT.clone(scan=True)
    base = gft.load("base").params
    jax.tree.map(np.testing.assert_array_equal, gft.load("looped", "base").params, gft.networks.stacked(base))
    # Such a run is a base itself, and stays a loop without the flag.
    assert train.parse([*inside[:3], "--base", "looped", *TINY]).task().module == kept
    for name in ("scan", "remat"):
        unet = ["images", "--data", "digits/new", "--pretrain", *TINY, "--methods", "from-scratch"]
        assert call(monkeypatch, train, *unet, f"--{name}", "--out", "refused") == 2
        assert f"--{name} is True; allowed is the default, False: it is a setting of --network sit" in (
            capsys.readouterr().err
        )


@pytest.mark.slow
def test_a_loop_trains_as_the_blocks_written_out(inside, monkeypatch):
    rows = {}
    for name, flags in {"plain": [], "loop": ["--scan"], "loop-lora": ["--scan", "--lora-rank", "2"]}.items():
        assert call(monkeypatch, train, *inside, *flags, "--raw", "--out", f"trained-{name}") == 0
        with open(f"trained-{name}/metrics.jsonl") as file:
            logged = [json.loads(line) for line in file]
        rows[name] = {row["method"]: row["energy_distance"] for row in logged if row["kind"] == "evaluation"}
    looped = gft.networks.unstacked(gft.load("trained-loop").params)
    written_out, base = gft.load("trained-plain").params, gft.load("base").params
    for ours, theirs, start in zip(*map(jax.tree.leaves, (looped, written_out, base)), strict=True):
        moved = np.abs(np.asarray(theirs) - start).max()
        np.testing.assert_allclose(ours, theirs, atol=0.02 * moved, rtol=0)
        assert moved > 0
    assert rows["loop"] == pytest.approx(rows["plain"], rel=1e-3)
    assert rows["loop-lora"]["base"] == pytest.approx(rows["plain"]["base"], rel=1e-3)


@pytest.mark.slow
def test_a_run_splits_a_sit_over_devices_by_features():
    report = on_fake_devices("sharded_images_program.py", num_devices=2)
    assert float(report["difference"]) <= 1e-4
    assert float(report["size"]) > 1e-3
    assert report["fc2"] == "('fsdp',)"
    # The rule that knows no names would split its inputs, of which there are more.
    assert report["t_embedder"] == "(None, 'fsdp')"
