"""Weights of SiT and DiT in PyTorch to parameters of `gft_jax.networks.SiT`, and back."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gft_jax.interop.rules import LINEAR, Layout, Rule, exported, imported, layer
from gft_jax.loading import check_params, init_params
from gft_jax.networks import SiT, stacked, unstacked
from gft_jax.networks.sit import PRESETS, positions
from gft_jax.types import Params

POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"
_POSITIONS_WITHIN = 2**-8
"""Half a unit in the last place of bfloat16 at 1, in which weights may be kept. Averages of weights average the table
too, and their rounding in float32 moves it by up to 2e-4. Another table differs by about 1."""


def sit_params(state: Mapping[str, Any], module: SiT, event_shape: tuple[int, int, int]) -> Params:
    """Parameters of the network from a state dict of the original.

    The velocity is then that of the original at the same t; images are ``[batch, height, width, channels]`` here and
    ``[batch, channels, height, width]`` there. DiT has the same entries, but its output is not a velocity.

    The network has the fixed table of positions in the place of the entry ``pos_embed``. In averaged weights, such as
    the published ones, rounding has moved that by up to 2e-4, and the velocity by about 1e-4 of its size.

    Args:
        state: arrays by name, as of `read_state_dict`.
        module: the network; `sit_of` reads it from the state dict.
        event_shape: height, width and channels of an image or a latent.

    Raises:
        ValueError: naming the entries that are missing, extra or of another shape, and telling for what network
            the state dict looks; for numbers that are complex or not finite, and for positions that are not the fixed
            ones.
    """
    try:
        unscanned = module.clone(scan=False, remat=False, fused_attention=False)
        like = jax.eval_shape(lambda: init_params(unscanned, jax.random.key(0), event_shape))
        table = _positions(module, event_shape)
        params = imported(
            state, _rules(module), like | {POSITIONS: jax.ShapeDtypeStruct(table.shape, "float32")}
        )
        if not np.abs(params.pop(POSITIONS) - table).max() <= _POSITIONS_WITHIN:
            raise ValueError(
                f"{POSITIONS} is not the fixed table of sines and cosines that the network has in its place: these "
                "weights are of a network with other positions."
            )
    except ValueError as error:
        raise ValueError(f"{error} {_looks_like(state)}") from error
    return stacked(params) if module.scan else params


def sit_state_dict(params: Params, module: SiT, event_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """State dict that the original loads, with its fixed positions in float32; undoes `sit_params`.

    Raises:
        ValueError: for parameters of another network, naming the first that differs in its shape.
    """
    check_params(params, module.clone(remat=False, fused_attention=False), event_shape, with_dtypes=False)
    table = _positions(module, event_shape).astype(np.float32)
    params = unstacked(params) if module.scan else params
    return exported({**params, POSITIONS: table}, _rules(module))


def sit_of(state: Mapping[str, Any], num_heads: int | None = None) -> tuple[SiT, tuple[int, int, int]]:
    """The network whose weights these are, and the shape of its images, read from the shapes of the entries.

    Args:
        state: arrays by name, as of `read_state_dict`.
        num_heads: heads of attention, which leave no trace in the shapes; default those of the published size.

    Raises:
        ValueError: naming an entry that is missing or of an impossible shape, and blocks without any entry; for a size
            that is not a published one, if the heads are not given.
    """
    patches = _shape(state, "x_embedder.proj.weight", 4)
    hidden_size, channels, patch_size, _ = patches
    tokens = _shape(state, POSITIONS, 3)[1]
    side = math.isqrt(tokens)
    outputs = _shape(state, "final_layer.linear.weight", 2)[0]
    num_classes = _shape(state, LABELS, 2)[0] - 1 if LABELS in state else None
    mlp_features = _shape(state, "blocks.0.mlp.fc1.weight", 2)[0]
    depth = _depth(state)
    heads_by_size = {(each["hidden_size"], each["depth"]): each["num_heads"] for each in PRESETS.values()}
    one = patch_size**2 * channels
    impossible = {
        "x_embedder.proj.weight": patches[2] != patches[3],
        POSITIONS: side**2 != tokens,
        "final_layer.linear.weight": outputs not in (one, 2 * one),
        "blocks.0.mlp.fc1.weight": mlp_features % hidden_size != 0,
        LABELS: num_classes == 0,
    }
    for name, is_impossible in impossible.items():
        if is_impossible:
            raise ValueError(
                f"no SiT has {name} of shape {np.shape(state[name])} beside {patches} of its patches."
            )
    heads = heads_by_size.get((hidden_size, depth)) if num_heads is None else num_heads
    if heads is None:
        raise ValueError(
            f"SiT with hidden_size={hidden_size} and depth={depth} is not a published size: give num_heads, which the "
            "weights do not show."
        )
    module = SiT(
        hidden_size=hidden_size,
        depth=depth,
        num_heads=heads,
        patch_size=patch_size,
        mlp_ratio=mlp_features // hidden_size,
        num_classes=num_classes,
        learn_sigma=outputs == 2 * one,
    )
    return module, (side * patch_size, side * patch_size, channels)


def _depth(state: Mapping[str, Any]) -> int:
    """Number of blocks, none of which may be absent."""
    there = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    depth = max(there) + 1
    absent = (f"blocks.{index}.*" for index in range(depth) if index not in there)
    if len(there) < depth:
        raise ValueError(
            f"the state dict has entries of blocks.{depth - 1} and none of {next(absent)}: {depth - len(there)} of "
            f"{depth} blocks are missing in all."
        )
    return depth


def _shape(state: Mapping[str, Any], name: str, ndim: int) -> tuple[int, ...]:
    if name not in state or len(np.shape(state[name])) != ndim:
        got = f"of shape {np.shape(state[name])}" if name in state else "missing"
        raise ValueError(f"a state dict of SiT or DiT has {name} with {ndim} axes; here it is {got}.")
    return np.shape(state[name])


def _rules(module: SiT) -> list[Rule]:
    p = module.patch_size
    # The original embeds patches by a convolution, whose window is a patch; here it is a product with it.
    patches = Layout(
        lambda array: array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]),
        lambda array: array.reshape(p, p, -1, array.shape[1]).transpose(3, 2, 0, 1),
    )
    linear = {
        "t_embedder.mlp.0": "t_embedder_0",
        "t_embedder.mlp.2": "t_embedder_2",
        "blocks.{i}.attn.qkv": "blocks_{i}/qkv",
        "blocks.{i}.attn.proj": "blocks_{i}/proj",
        "blocks.{i}.mlp.fc1": "blocks_{i}/fc1",
        "blocks.{i}.mlp.fc2": "blocks_{i}/fc2",
        "blocks.{i}.adaLN_modulation.1": "blocks_{i}/adaLN_modulation",
        "final_layer.adaLN_modulation.1": "final_adaLN_modulation",
        "final_layer.linear": "final_linear",
    }
    return [
        Rule(POSITIONS, POSITIONS),
        *layer("x_embedder.proj", "x_embedder", patches),
        Rule(LABELS, "y_embedder/embedding"),
        *(rule for entry, leaf in linear.items() for rule in layer(entry, leaf, LINEAR)),
    ]


def _positions(module: SiT, event_shape: tuple[int, int, int]) -> np.ndarray:
    rows, columns = (side // module.patch_size for side in event_shape[:2])
    return positions(rows, columns, module.hidden_size)[None]


def _looks_like(state: Mapping[str, Any]) -> str:
    try:
        # Heads leave no trace in the shapes; 1 stands for those of a size that is not published.
        module, (height, width, channels) = sit_of(state, num_heads=1)
    except ValueError:
        return "It looks like no SiT or DiT."
    fields = {name: getattr(module, name) for name in ("hidden_size", "depth", "patch_size")}
    name = next((name for name, preset in PRESETS.items() if fields.items() <= preset.items()), None)
    fields |= {name: getattr(module, name) for name in ("mlp_ratio", "num_classes", "learn_sigma")}
    told = ", ".join(f"{field}={value}" for field, value in fields.items())
    size = "a SiT" if name is None else f"SiT-{name}"
    return f"It looks like {size} ({told}) for images {height} x {width} x {channels}."
