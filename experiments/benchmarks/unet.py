"""Training of a U-Net with the library beside torchcfm's own: same function, same law of the batches, one core.

A step draws rows, source and times, takes the gradient, clips it at norm 1, and updates by Adam and the average of the
parameters, as in torchcfm's example for CIFAR-10, without its dropout. The networks have the same parameters and differ
in the frequencies of t alone, which cost nothing. On top of this the library guards against values that are not
finite.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchcfm.models.unet.unet as torch_unet  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.beside_torch import Recipe, entrants
from experiments.benchmarks.interleaved import (
    Comparison,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from gft_jax.networks import UNet
from gft_jax.networks.embeddings import flow_time_frequencies, sinusoids

SIDES, COLOURS = (16, 32), 3
RECIPE = Recipe(batch_size=16, chunk=2, learning_rate=1e-4, averaging=0.9999, clip=1.0)
NETWORK = "a U-Net (1-2-2-2, 2 blocks, attention at 16)"
TITLE = f"torchcfm over gft_jax: training of {NETWORK}, batch {RECIPE.batch_size}, one core"
ASKED = 0.75
"""How many times as fast as torchcfm the library is to be."""
_TOLERANCE = 1e-4


def params_of(model: Any) -> dict[str, Any]:
    """The parameters of torchcfm's U-Net for `UNet`."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    num_levels, num_blocks = len(model.channel_mult), model.num_res_blocks

    def conv(name: str) -> dict[str, jax.Array]:
        kernel = jnp.array(state[f"{name}.weight"].transpose(2, 3, 1, 0))
        return {"kernel": kernel, "bias": jnp.array(state[f"{name}.bias"])}

    def dense(name: str) -> dict[str, jax.Array]:
        weight = state[f"{name}.weight"]
        kernel = jnp.array(weight.reshape(weight.shape[:2]).T)
        return {"kernel": kernel, "bias": jnp.array(state[f"{name}.bias"])}

    def norm(name: str) -> dict[str, jax.Array]:
        return {"scale": jnp.array(state[f"{name}.weight"]), "bias": jnp.array(state[f"{name}.bias"])}

    def block(name: str) -> dict[str, Any]:
        found = {
            "norm_0": norm(f"{name}.in_layers.0"),
            "conv_0": conv(f"{name}.in_layers.2"),
            "embedding": dense(f"{name}.emb_layers.1"),
            "norm_1": norm(f"{name}.out_layers.0"),
            "conv_1": conv(f"{name}.out_layers.3"),
        }
        skip = f"{name}.skip_connection"
        return found | ({"skip": dense(skip)} if f"{skip}.weight" in state else {})

    def attention(name: str) -> dict[str, Any]:
        return {
            "norm": norm(f"{name}.norm"),
            "qkv": dense(f"{name}.qkv"),
            "out": dense(f"{name}.proj_out"),
        }

    params: dict[str, Any] = {
        "time_0": dense("time_embed.0"),
        "time_1": dense("time_embed.2"),
        "first": conv("input_blocks.0.0"),
        "middle_0": block("middle_block.0"),
        "middle_attention": attention("middle_block.1"),
        "middle_1": block("middle_block.2"),
        "last_norm": norm("out.0"),
        "last": conv("out.2"),
    }

    def add(level_name: str, place: str, resampling: str) -> None:
        """The layers of one entry of their lists, by what their parameters are called."""
        for number in range(3):
            layer = f"{place}.{number}"
            if f"{layer}.in_layers.0.weight" in state:
                params[level_name] = block(layer)
            elif f"{layer}.qkv.weight" in state:
                params[f"{level_name}_attention"] = attention(layer)
            elif f"{layer}.conv.weight" in state:
                params[resampling] = conv(f"{layer}.conv")

    place = 0
    for level in range(num_levels):
        if level:
            place += 1
            params[f"down_{level}"] = conv(f"input_blocks.{place}.0.op")
        for i in range(num_blocks):
            place += 1
            add(f"down_{level}_{i}", f"input_blocks.{place}", "")
    place = 0
    for level in reversed(range(num_levels)):
        for i in range(num_blocks + 1):
            add(f"up_{level}_{i}", f"output_blocks.{place}", f"up_{level}")
            place += 1
    return params


def model_of(channels: int, side: int) -> Any:
    """torchcfm's U-Net with no zeros left among its parameters, which would hide layers behind them."""
    model = torch_unet.UNetModelWrapper(
        dim=(COLOURS, side, side),
        num_channels=channels,
        num_res_blocks=2,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        attention_resolutions="16",
    )
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return model


def check_same_function(model: Any, module: UNet, side: int) -> None:
    """Refuses a comparison of two networks that are not the same function, but for the frequencies of t.

    Raises:
        ValueError: if their outputs differ for the same parameters and inputs.
    """
    rng = np.random.default_rng(0)
    t, x = rng.random(2, np.float32), rng.standard_normal((2, side, side, COLOURS), np.float32)
    theirs_by_time = torch_unet.timestep_embedding
    torch_unet.timestep_embedding = lambda t, size: torch.from_numpy(
        np.array(sinusoids(jnp.asarray(t.numpy()), flow_time_frequencies(size, module.max_frequency)))
    )
    try:
        with torch.no_grad():
            theirs = np.moveaxis(_velocity(model, torch.from_numpy(t), _to_torch(x)).numpy(), 1, 3)
    finally:
        torch_unet.timestep_embedding = theirs_by_time
    ours = np.asarray(jax.jit(module.apply)({"params": params_of(model)}, jnp.asarray(t), jnp.asarray(x)))
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the U-Nets of torchcfm and of the library differ by {difference:.2g} of the largest velocity for the "
            "same parameters: nothing is measured"
        )


def _velocity(model: Any, t: Any, x: Any) -> Any:
    return model(t, x)


def _to_torch(images: np.ndarray) -> Any:
    return torch.from_numpy(np.moveaxis(images, 3, 1).copy())


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """torchcfm's time over the library's, at each number of channels and size of image.

    Raises:
        ValueError: if the two networks are not the same function.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outcomes = []
    for channels in widths:
        for side in SIDES:
            print(f"measuring {channels} channels, {side} x {side} pixels", file=sys.stderr)
            model, module = model_of(channels, side), UNet(channels)
            check_same_function(model, module, side)
            data = np.random.default_rng(0).standard_normal((256, side, side, COLOURS), np.float32)
            programs = entrants(RECIPE, model, _velocity, _to_torch(data), module, params_of(model), data)
            asked = [
                Comparison("torchcfm / library in single steps", "torchcfm", "single", at_least=ASKED),
                Comparison("torchcfm / library in chunks", "torchcfm", "chunks", at_least=ASKED),
                Comparison("tuned torchcfm / library in single steps", "torchcfm, tuned", "single"),
            ]
            seconds = seconds_per_step(programs, rounds_at(channels, rounds), warm_ups=1)
            setting = f"{channels} channels, {side} x {side}"
            outcomes += [compare(setting, comparison, seconds) for comparison in asked]
    return outcomes
