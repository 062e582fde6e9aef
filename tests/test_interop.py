"""State dicts of PyTorch: read, converted and written again; what does not fit is refused by name."""

import sys
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from programs import call

import gft_jax as gft
from experiments import import_weights, sample
from experiments.images.networks import pretrained
from gft_jax.interop import (
    CONVOLUTION,
    LINEAR,
    Rule,
    exported,
    imported,
    layer,
    read_state_dict,
    sit_of,
    sit_params,
    sit_state_dict,
    write_state_dict,
)
from gft_jax.networks import SiT
from gft_jax.networks.leaf_names import names_of

FILE = Path(__file__).parent / "data" / "sit_tiny.safetensors"
SHAPE = (8, 8, 4)


@pytest.fixture(scope="module")
def state():
    return read_state_dict(FILE)


@pytest.fixture(scope="module")
def module(state):
    return sit_of(state, num_heads=3)[0]


def test_the_network_is_read_from_the_shapes(state, module):
    assert sit_of(state, num_heads=3)[1] == SHAPE
    assert module == SiT(48, 2, 3, 2, num_classes=10, learn_sigma=True)
    with pytest.raises(
        ValueError, match="hidden_size=48 and depth=2 is not a published size: give num_heads"
    ):
        sit_of(state)
    cut = {name: array for name, array in state.items() if not name.startswith("blocks.1.")}
    ends = {"blocks.3.attn.qkv.bias": np.zeros(144)}
    with pytest.raises(ValueError, match=r"blocks\.3 and none of blocks\.1\.\*: 2 of 4 blocks are missing"):
        sit_of(cut | ends)
    with pytest.raises(ValueError, match=r"has x_embedder.proj.weight with 4 axes; here it is missing"):
        sit_of({"a": np.zeros(3)})
    with pytest.raises(ValueError, match=r"no SiT has final_layer.linear.weight of shape \(31, 48\)"):
        sit_of(state | {"final_layer.linear.weight": np.zeros((31, 48))}, num_heads=3)


@pytest.mark.parametrize("scan", [False, True])
def test_export_undoes_import(state, module, scan, tmp_path):
    module = module.clone(scan=scan)
    params = sit_params(state, module, SHAPE)
    write_state_dict(
        tmp_path / "again.safetensors", sit_state_dict(params, module, SHAPE), {"patch_size": "2"}
    )
    again = read_state_dict(tmp_path / "again.safetensors")
    assert again.keys() == state.keys()
    for name, array in state.items():
        if name == "pos_embed":  # a float32 table of sines: computed anew
            np.testing.assert_allclose(again[name], array, atol=2e-7)
        else:
            np.testing.assert_array_equal(again[name], array)
    for one, other in zip(*map(jax.tree.leaves, (params, sit_params(again, module, SHAPE))), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        write_state_dict(tmp_path / "again.pt", again)


def without(name):
    return lambda state: {other: array for other, array in state.items() if other != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            without("blocks.1.mlp.fc2.bias"),
            r"missing: blocks\.1\.mlp\.fc2\.bias\. It looks like a SiT \(hidden",
        ),
        (without("pos_embed"), r"missing: pos_embed\. It looks like no SiT"),
        (
            lambda state: state | {"blocks.2.attn.qkv.bias": np.zeros(144)},
            r"extra: blocks\.2\.attn\.qkv\.bias\.",
        ),
        (lambda state: state | {"cls_token": np.zeros(48)}, r"extra: cls_token\."),
        (
            lambda state: state | {"blocks.0.attn.proj.weight": np.zeros((48, 24))},
            r"of another shape: blocks\.0\.attn\.proj\.weight is \(48, 24\), expected \(48, 48\)",
        ),
        (
            lambda state: state | {"x_embedder.proj.weight": np.zeros((48, 16))},
            r"x_embedder\.proj\.weight is \(48, 16\), expected \(48, 4, 2, 2\)",
        ),
        (
            lambda state: without("final_layer.linear.bias")(state) | {"more": np.zeros(1)},
            r"missing: final_layer\.linear\.bias; extra: more\.",
        ),
        (lambda state: state | {"pos_embed": np.zeros((1, 16, 48))}, "with other positions"),
        (lambda state: state | {"pos_embed": state["pos_embed"] + 0.01}, "with other positions"),
        (
            lambda state: state | {"blocks.0.attn.qkv.bias": np.r_[np.zeros(143), np.nan]},
            r"not of finite real numbers: blocks\.0\.attn\.qkv\.bias\.",
        ),
        (
            lambda state: state | {"blocks.0.attn.qkv.bias": np.zeros(144, np.complex64)},
            r"not of finite real numbers: blocks\.0\.attn\.qkv\.bias\.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(state, module, change, told):
    with pytest.raises(ValueError, match=told):
        sit_params(change(state), module, SHAPE)


def test_positions_in_half_precision_are_the_fixed_ones(state, module):
    half = state | {"pos_embed": state["pos_embed"].astype(jnp.bfloat16)}
    assert np.abs(half["pos_embed"].astype(np.float32) - state["pos_embed"]).max() > 1e-3
    sit_params(half, module, SHAPE)


def test_positions_of_averaged_weights_are_the_fixed_ones(state, module):
    """An average of the table with itself, in float32 as training takes it, drifts away from the table."""
    table, decay = state["pos_embed"], np.float32(0.9999)
    average, part = table.copy(), table * np.float32(1 - 0.9999)
    for _ in range(20_000):
        average = average * decay + part
    assert 5e-5 < np.abs(average - table).max() < 2e-4
    drifted = sit_params(state | {"pos_embed": average}, module, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, drifted, sit_params(state, module, SHAPE))


@pytest.mark.parametrize("scan", [False, True])
def test_parameters_of_another_network_are_not_exported(state, module, scan):
    module = module.clone(scan=scan)
    params = sit_params(state, module, SHAPE)
    without_last = {name: leaf for name, leaf in params.items() if name != "final_linear"}
    with pytest.raises(
        ValueError, match=r"params\['final_linear'\]\['bias'\] is missing, expected shape \(32,\)"
    ):
        sit_state_dict(without_last, module, SHAPE)
    with pytest.raises(ValueError, match=r"is shape \(32,\), expected shape \(8,\); 3 differ in all"):
        sit_state_dict(params, module.clone(patch_size=1), SHAPE)


def test_scalars_and_turned_arrays_are_written_as_they_are(tmp_path):
    turned = np.arange(6.0).reshape(2, 3).T
    write_state_dict(tmp_path / "w.safetensors", {"steps": np.float32(3), "turned": turned})
    again = read_state_dict(tmp_path / "w.safetensors")
    assert again["steps"].shape == ()
    assert again["steps"] == 3
    np.testing.assert_array_equal(again["turned"], turned)


def test_weights_of_another_size_are_told_apart():
    """Weights of SiT-S/2 for the network of SiT-S/4; arrays without memory of their own."""
    module = SiT.preset("S/2", num_classes=1000, learn_sigma=True)
    like = jax.eval_shape(lambda: gft.loading.init_params(module, jax.random.key(0), (32, 32, 4)))
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    state = sit_state_dict(params, module, (32, 32, 4))
    assert sit_of(state) == (module, (32, 32, 4))
    with pytest.raises(ValueError, match=r"expected \(384, 4, 4, 4\)") as refused:
        sit_params(state, module.clone(patch_size=4), (32, 32, 4))
    refused.match(r"looks like SiT-S/2 \(.*num_classes=1000.*for images 32 x 32 x 4")


def test_a_file_that_is_cut_short_or_unknown_is_refused(tmp_path):
    for length in (4, 1000, 400_000):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(FILE.read_bytes()[:length])
        with pytest.raises(ValueError, match="cut short or no safetensors file"):
            read_state_dict(cut)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_state_dict(tmp_path / "absent.pt")
    other = tmp_path / "weights.bin"
    other.write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a \.safetensors, \.pt or \.pth file"):
        read_state_dict(other)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'safetensors is not installed: pip install "gft_jax\[weights\]"'):
        read_state_dict(FILE)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "gft_jax\[torch\]"'):
        read_state_dict(tmp_path / "w.pt")


def test_torch_checkpoints_give_their_averaged_weights(state, tmp_path):
    """As SiT saves them, beside optimiser and settings, and as it publishes them."""
    torch = pytest.importorskip("torch")
    import argparse

    tensors = {name: torch.tensor(array) for name, array in state.items()}
    path = tmp_path / "training.pt"
    raw = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save(
        {"model": raw, "ema": tensors, "opt": {"state": {}}, "args": argparse.Namespace(model="SiT")}, path
    )
    for entry, offset in ((None, 0), ("ema", 0), ("model", 1)):
        np.testing.assert_array_equal(
            read_state_dict(path, entry)["x_embedder.proj.bias"], state["x_embedder.proj.bias"] + offset
        )
    with pytest.raises(ValueError, match="no state dict 'average'; there are model, ema"):
        read_state_dict(path, "average")
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    halved = read_state_dict(path)["x_embedder.proj.bias"]
    np.testing.assert_array_equal(
        halved, state["x_embedder.proj.bias"].astype(jnp.bfloat16).astype("float32")
    )
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read_state_dict(path)


def test_a_file_of_several_state_dicts_needs_a_name_unless_one_is_averaged(monkeypatch, tmp_path):
    """Without torch: a stand-in for its loader, which must be told to load weights alone."""
    path = tmp_path / "w.pt"
    path.write_bytes(b"")
    content = {}

    def load(file, map_location, weights_only):
        assert weights_only
        return content

    context = pytest.MonkeyPatch.context
    serialization = SimpleNamespace(safe_globals=lambda allowed: context())
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load, serialization=serialization))
    content |= {"generator": {"w": np.ones(1)}, "critic": {"w": np.zeros(1)}, "epoch": 3}
    with pytest.raises(ValueError, match="entries generator, critic, epoch: name one of generator, critic"):
        read_state_dict(path)
    assert read_state_dict(path, "generator")["w"] == 1
    content["ema"] = {"w": np.full(1, 2.0)}
    assert read_state_dict(path)["w"] == 2


class Small(nn.Module):
    """A network of one's own, with one layer of each layout."""

    @nn.compact
    def __call__(self, x, labels):
        h = nn.Conv(3, (2, 3), padding="VALID", name="conv")(x).reshape(x.shape[0], -1)
        h += nn.Embed(5, 3, name="table")(labels)
        return nn.Dense(4, name="mlp_0")(h)


SMALL_RULES = [
    *layer("features.{i}", "conv", CONVOLUTION),
    *layer("head.mlp.{i}", "mlp_{i}", LINEAR),
    Rule("table.weight", "table/embedding"),
    Rule("table.updates", None),
]


def test_rules_bring_a_network_of_ones_own():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 2, 3, 5)).astype(np.float32), np.array([4, 1])
    like = jax.eval_shape(Small().init, jax.random.key(0), x, labels)["params"]
    shapes = {
        "features.7.weight": (3, 5, 2, 3),
        "features.7.bias": (3,),
        "head.mlp.0.weight": (4, 3),
        "head.mlp.0.bias": (4,),
        "table.weight": (5, 3),
        "table.updates": (),
    }
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = imported(state, SMALL_RULES, like)
    # A window as large as the image: the convolution of PyTorch, written out.
    h = np.einsum("nhwc,ochw->no", x, state["features.7.weight"]) + state["features.7.bias"]
    h += state["table.weight"][labels]
    expected = h @ state["head.mlp.0.weight"].T + state["head.mlp.0.bias"]
    np.testing.assert_allclose(Small().apply({"params": params}, x, labels), expected, rtol=1e-4, atol=1e-5)

    with pytest.raises(
        ValueError, match=r"'features\.\{i\}\.bias' has the field 'i', which 'conv/bias' does"
    ):
        exported(params, SMALL_RULES)
    back = exported(params, [*layer("features.7", "conv", CONVOLUTION), *SMALL_RULES[2:]])
    assert back.keys() == state.keys() - {"table.updates"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])
    with pytest.raises(ValueError, match=r"no rule for mlp_0/bias, mlp_0/kernel of the parameters"):
        exported(
            params, [SMALL_RULES[0]._replace(entry="c"), SMALL_RULES[1]._replace(entry="b"), SMALL_RULES[4]]
        )
    with pytest.raises(ValueError, match=r"features\.7\.bias and features\.8\.bias .* both conv/bias"):
        imported(state | {"features.8.bias": np.zeros(3)}, SMALL_RULES, like)


class Gain(eqx.Module):
    """What is a parameter by name is one, though nnx calls the content of its variables so."""

    query: jax.Array
    value: jax.Array


class Attending(nnx.Module):
    """A layer, and parameters in a pytree."""

    def __init__(self, rngs):
        self.proj = nnx.Linear(2, 3, rngs=rngs)
        self.gain = nnx.Param(Gain(jnp.zeros(2), jnp.zeros(3)))


def test_rules_name_parameters_as_patterns_do_those_of_nnx_too():
    like = nnx.state(nnx.eval_shape(lambda: Attending(nnx.Rngs(0))))
    assert names_of(like) == ["gain/query", "gain/value", "proj/bias", "proj/kernel"]
    assert names_of({"attn": Gain(jnp.ones(1), jnp.ones(1))}) == ["attn/query", "attn/value"]
    rng = np.random.default_rng(0)
    shapes = {"proj.weight": (3, 2), "proj.bias": (3,), "gain.q": (2,), "gain.v": (3,)}
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    rules = [*layer("proj", "proj", LINEAR), Rule("gain.q", "gain/query"), Rule("gain.v", "gain/value")]
    params = imported(state, rules, like)
    np.testing.assert_array_equal(params["proj"]["kernel"][...], state["proj.weight"].T)
    np.testing.assert_array_equal(params["gain"].get_value().value, state["gain.v"])
    back = exported(params, rules)
    assert back.keys() == state.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])
    with pytest.raises(ValueError, match="no rule for gain/query, gain/value of the parameters"):
        exported(params, rules[:2])


def test_the_command_writes_what_load_reads(monkeypatch, capsys, tmp_path, state, module):
    out = tmp_path / "sit"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(FILE.read_bytes()[:-1])
    assert call(monkeypatch, import_weights, cut, out, "--num-heads", 3) == 2
    assert "cut short" in capsys.readouterr().err
    assert call(monkeypatch, import_weights, FILE, out) == 2
    assert "give num_heads" in capsys.readouterr().err
    assert not out.exists()
    assert call(monkeypatch, import_weights, FILE, out, "--num-heads", 3) == 0
    told = capsys.readouterr().out
    assert "hidden_size=48, depth=2, num_heads=3" in told
    assert "taken as a velocity in flow time" in told
    assert pretrained(out, None).module == module

    loaded = gft.load(out)
    assert (loaded.method, loaded.event_shape) == ("base", SHAPE)
    params = sit_params(state, module, SHAPE)
    for one, other in zip(*map(jax.tree.leaves, (loaded.params, params)), strict=True):
        np.testing.assert_array_equal(one, other)
    t, x, cond = jnp.full(2, 0.3), jnp.ones((2, *SHAPE)), jnp.array([1, 10])
    expected = jax.jit(module.apply)({"params": params}, t, x, cond)
    np.testing.assert_array_equal(jax.jit(loaded.drift)(params, t, x, cond), expected)

    assert call(monkeypatch, import_weights, FILE, out, "--num-heads", 3) == 2
    assert "holds something already" in capsys.readouterr().err


def test_weights_that_predict_noise_are_not_taken_for_a_velocity(monkeypatch, capsys, tmp_path):
    """The names and shapes of DiT are those of SiT: its file is told by its name, the folder by what was said."""
    file, out = tmp_path / "DiT-tiny.safetensors", tmp_path / "dit"
    file.write_bytes(FILE.read_bytes())
    assert call(monkeypatch, import_weights, file, out, "--num-heads", 3) == 2
    assert "give --predicts noise" in capsys.readouterr().err
    assert not out.exists()
    assert call(monkeypatch, import_weights, file, out, "--num-heads", 3, "--predicts", "noise") == 0
    assert "velocity_from_noise" in capsys.readouterr().out
    assert call(monkeypatch, sample, out, "--num-samples", 1, "--num-steps", 1) == 2
    assert "predicts noise, and a velocity in flow time is needed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="predicts noise, and a velocity in flow time is needed"):
        pretrained(out, None)
