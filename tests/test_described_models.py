"""Networks by name in a folder: what is written is the network that comes back."""

import dataclasses

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
    gft.networks.ResidualMLP(hidden=8, depth=1, time_features=4, **CONDITION),
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
        **CONDITION,
    ),
]
"""All of their settings are others than the defaults: one that was not written down would come back changed."""


@pytest.mark.parametrize("module", CHANGED, ids=lambda module: type(module).__name__)
def test_every_setting_of_a_network_is_described(tmp_path, module):
    settings = [field for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    assert [field.name for field in settings if getattr(module, field.name) == field.default] == []
    describe_model(tmp_path, module, (4, 4, 1))
    again, event_shape, lora = described_model(tmp_path)
    assert again == module
    assert event_shape == (4, 4, 1)
    assert lora is None


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
