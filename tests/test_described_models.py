"""Networks by name in a folder: what is written is the network that comes back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gft_jax as gft
from gft_jax.loading import MODEL_FILE, describe_model, described_model, init_params, save_model
from gft_jax.networks.lora import low_rank

SMALL = gft.networks.ResidualMLP(hidden=8, depth=1, num_classes=3)
CONDITION = {
    "two_times": True,
    "num_classes": {"class": 3},
    "cond_features": {"text": 2},
    "learned_null": True,
    "param_dtype": jnp.bfloat16,
}
CHANGED = [
    gft.networks.ResidualMLP(hidden=8, depth=1, time_features=4, max_frequency=8.0, **CONDITION),
    gft.networks.SiT(
        hidden_size=8,
        depth=1,
        num_heads=2,
        patch_size=2,
        mlp_ratio=2,
        learn_sigma=True,
        remat=True,
        scan=True,
        fused_attention=True,
        **CONDITION,
    ),
    gft.networks.UNet(
        channels=4,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_heads=2,
        norm_groups=2,
        scale_shift=True,
        max_frequency=8.0,
        **CONDITION,
    ),
]
"""All of their settings are others than the defaults: one that was not written down would come back changed."""


@pytest.mark.parametrize("module", CHANGED, ids=lambda module: type(module).__name__)
def test_every_setting_of_a_network_is_described(tmp_path, module):
    settings = [field for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    assert [field.name for field in settings if getattr(module, field.name) == field.default] == []
    describe_model(tmp_path, module, (4, 4, 1))
    assert described_model(tmp_path) == (module, (4, 4, 1), None, ())


def test_every_setting_of_low_rank_adaptation_is_described_with_the_network(tmp_path):
    patterns = ["*/qkv/kernel"]
    lora = low_rank(
        patterns,
        rank=2,
        alpha=3.0,
        stacked=["blocks/*"],
        parts={"*/qkv/kernel": 3},
        whole=["y_embedder/*"],
    )
    defaults = low_rank(patterns, rank=2).settings._asdict() | {"patterns": None, "rank": None}
    same = [name for name, value in lora.settings._asdict().items() if value == defaults[name]]
    assert same == []
    describe_model(tmp_path, SMALL, (4, 4, 1), lora)
    again = described_model(tmp_path).lora
    assert again is not None
    assert again.settings == lora.settings


def test_a_model_that_is_kept_is_loaded_as_a_base(tmp_path):
    module = SMALL
    params = init_params(module, jax.random.key(1), (3,))
    save_model(tmp_path / "model", module, params, (3,))
    loaded = gft.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert (loaded.method, loaded.event_shape) == ("base", (3,))
    with pytest.raises(
        ValueError, match=r"params\['first'\]\['kernel'\] is float32\(3, 8\), expected float32\(4, 8\)"
    ):
        save_model(tmp_path / "other", module, params, (4,))
    assert not (tmp_path / "other").exists()
    with pytest.raises(FileExistsError):
        save_model(tmp_path / "model", module, jax.tree.map(jnp.zeros_like, params), (3,))
    with pytest.raises(ValueError, match=r"no config\.json"):
        gft.load(tmp_path / "model", "plain")


def random_params(module, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), (3,)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), shapes)


def run_of_both_kinds(run):
    """A run whose method "straight" is of the network and "average" of its two-time form, with their parameters."""
    twice = SMALL.clone(two_times=True)
    kept = {
        "base": random_params(SMALL, 0),
        "straight-seed1": random_params(SMALL, 1),
        "average-seed1": random_params(twice, 2),
    }
    for name, params in kept.items():
        gft.checkpoints.save_params(run / "params" / name, params)
    (run / "config.json").write_text(json.dumps({"methods": ["straight", "average"], "seeds": [1]}))
    describe_model(run, SMALL, (3,), two_time_methods=("average",))
    return kept


def test_methods_of_both_kinds_are_loaded_from_one_run(tmp_path):
    kept = run_of_both_kinds(tmp_path)
    described = described_model(tmp_path)
    assert described == (SMALL, (3,), None, ("average",))
    assert described.network_of("average") == SMALL.clone(two_times=True)
    assert described.network_of("straight") is described.network_of("base") is described.module
    loaded = {name: gft.load(tmp_path, name) for name in ("base", "straight", "average")}
    rng = np.random.default_rng(3)
    x, t = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), jnp.linspace(0.1, 0.6, 4)
    s, labels = t + 0.3, np.arange(4) % 4
    once, twice = (gft.drifts.from_linen(SMALL.clone(two_times=flag)) for flag in (False, True))
    average = gft.drifts.two_times(twice)
    for name, one in loaded.items():
        params = kept["base" if name == "base" else f"{name}-seed1"]
        jax.tree.map(np.testing.assert_array_equal, one.params, params)
        assert (one.average is not None) == (name == "average")
        np.testing.assert_array_equal(
            one.drift(one.base_params, t, x, labels), once(kept["base"], t, x, labels)
        )
        expected = once(params, t, x, labels) if name != "average" else average(params, t, t, x, labels)
        np.testing.assert_array_equal(one.drift(one.params, t, x, labels), expected)
        assert np.abs(expected).max() > 0.1
    found = loaded["average"]
    of_base = found.average(found.base_params, t, s, x, labels)
    np.testing.assert_array_equal(of_base, once(kept["base"], t, x, labels))
    ours = found.average(found.params, t, s, x, labels)
    np.testing.assert_array_equal(ours, average(kept["average-seed1"], t, s, x, labels))
    assert np.abs(ours - found.drift(found.params, t, x, labels)).max() > 1e-3  # power


LORA = low_rank(["block_*/kernel"], rank=2)


@pytest.mark.parametrize(
    ("module", "methods", "lora", "message"),
    [
        (gft.networks.SecondTime(8), ("a", "b"), None, "SecondTime has no form of two times, .* names a, b"),
        (SMALL.clone(two_times=True), ("a",), None, "ResidualMLP has two times itself.*is a, leave it out"),
        (SMALL, ("a", "base"), None, "is a, base: the base is kept as it was pretrained"),
        (SMALL, ("a",), LORA, "adapters of a run are of one network.*two_time_params"),
    ],
)
def test_methods_of_two_times_that_no_folder_can_hold_are_refused(tmp_path, module, methods, lora, message):
    with pytest.raises(ValueError, match=message):
        describe_model(tmp_path, module, (3,), lora, methods)
    assert not (tmp_path / MODEL_FILE).exists()
    describe_model(tmp_path, module, (3,), lora)
    written = json.loads((tmp_path / MODEL_FILE).read_text())
    assert "two_time_methods" not in written
    (tmp_path / MODEL_FILE).write_text(json.dumps(written | {"two_time_methods": methods}))
    with pytest.raises(ValueError, match=r"model\.json does not describe a network: .*" + message):
        described_model(tmp_path)


@pytest.mark.parametrize("damaged", ["average", [1], None, {"average": True}])
def test_damaged_names_of_methods_of_two_times_are_refused(tmp_path, damaged):
    describe_model(tmp_path, SMALL, (3,), two_time_methods=("average",))
    path = tmp_path / MODEL_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"two_time_methods": damaged}))
    with pytest.raises(ValueError, match=r"does not describe a network .*must be a list of names"):
        described_model(tmp_path)


def test_parameters_are_kept_in_the_dtype_of_the_network(tmp_path):
    half = SMALL.clone(param_dtype=jnp.bfloat16)
    params = init_params(half, jax.random.key(1), (3,))
    with pytest.raises(ValueError, match=r"is bfloat16\(8,\), expected float32\(8,\).*param_dtype"):
        save_model(tmp_path / "other", SMALL, params, (3,))
    assert not (tmp_path / "other").exists()
    save_model(tmp_path / "model", half, params, (3,))
    loaded = gft.load(tmp_path / "model").params
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


class _Own(nn.Module):
    @nn.compact
    def __call__(self, t, x, cond=None):
        return x


def test_what_is_no_description_is_refused(tmp_path):
    with pytest.raises(ValueError, match="_Own is not a network of"):
        describe_model(tmp_path, _Own(), (3,))
    with pytest.raises(ValueError, match="is not the folder of a run or of a model"):
        described_model(tmp_path)
    for text, message in (
        ("{}", "does not describe a network"),
        ('{"network": "Other", "settings": {}, "event_shape": [3]}', "names the network 'Other'"),
        ('{"network": "ResidualMLP", "settings": {"wide": 3}, "event_shape": [3]}', "does not take"),
    ):
        (tmp_path / MODEL_FILE).write_text(text)
        with pytest.raises(ValueError, match=message):
            described_model(tmp_path)
