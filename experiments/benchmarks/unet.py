"""Training of a U-Net with the library beside torchcfm's own: same function, same law of the batches, one core.

A step draws rows, source and times, takes the gradient, clips it at norm 1, and updates by Adam and the average of the
parameters, as in torchcfm's example for CIFAR-10, without its dropout. The networks have the same parameters and differ
in the frequencies of t alone, which cost nothing. On top of this the library guards against values that are not
finite.
"""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]
import torchcfm.models.unet.unet as torch_unet  # pyright: ignore[reportMissingImports]
from torchcfm.conditional_flow_matching import (  # pyright: ignore[reportMissingImports]
    ConditionalFlowMatcher,
)

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from gft_jax.networks import UNet
from gft_jax.networks.embeddings import flow_time_frequencies, sinusoids

BATCH_SIZE, SIDES, COLOURS = 16, (16, 32), 3
TITLE = f"torchcfm over gft_jax: training of a U-Net (1-2-2-2, 2 blocks, attention at 16), batch {BATCH_SIZE}, one core"
CHUNK = 2
LEARNING_RATE = 1e-4
AVERAGING = 0.9999
CLIP = 1.0
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
        np.array(sinusoids(jnp.asarray(t.numpy()), flow_time_frequencies(size)))
    )
    try:
        with torch.no_grad():
            images = torch.from_numpy(np.moveaxis(x, 3, 1).copy())
            theirs = np.moveaxis(model(torch.from_numpy(t), images).numpy(), 1, 3)
    finally:
        torch_unet.timestep_embedding = theirs_by_time
    ours = np.asarray(jax.jit(module.apply)({"params": params_of(model)}, jnp.asarray(t), jnp.asarray(x)))
    difference = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the U-Nets of torchcfm and of the library differ by {difference:.2g} of the largest velocity for the "
            "same parameters: nothing is measured"
        )


def of_torchcfm(model: Any, data: np.ndarray, tuned: bool) -> Entrant:
    """Training as torchcfm's example for CIFAR-10 does it, or with torch's fused Adam and one call for all averages."""
    model, averaged = copy.deepcopy(model), copy.deepcopy(model)
    rows = torch.from_numpy(np.moveaxis(data, 3, 1).copy())
    matcher = ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=tuned or None)

    def average() -> None:
        source, target = model.state_dict(), averaged.state_dict()
        if tuned:
            torch._foreach_lerp_(list(target.values()), list(source.values()), 1.0 - AVERAGING)
            return
        for name in source:
            target[name].data.copy_(target[name].data * AVERAGING + source[name].data * (1.0 - AVERAGING))

    def run() -> None:
        for _ in range(CHUNK):
            optimizer.zero_grad()
            x1 = rows[torch.randint(len(rows), (BATCH_SIZE,))]
            t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((model(t, x) - velocity) ** 2)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            average()

    return Entrant(run, CHUNK)


def of_library(module: UNet, params: Any, data: np.ndarray, in_chunks: bool) -> Entrant:
    """Training with the library, pairing included: in chunks, or step by step."""
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module), gft.paths.linear())
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LEARNING_RATE))
    runner = gft.parallel.single_device(gft.finetuner(objective, optimizer, averaging=AVERAGING))
    stream = gft.pairing.batches(data, batch_size=BATCH_SIZE, seed=0)
    state, taken = runner.init(jax.random.key(0), params=params), 0

    def run() -> None:
        nonlocal state, taken
        if in_chunks:
            state, _ = runner.step_many(state, None, stream.many(taken, CHUNK))
        else:
            for step in range(taken, taken + CHUNK):
                state, _ = runner.step(state, None, stream.batch(step))
        taken += CHUNK
        jax.block_until_ready(state)

    return Entrant(run, CHUNK)


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
            params = params_of(model)
            data = np.random.default_rng(0).standard_normal((256, side, side, COLOURS), np.float32)
            entrants = {
                "torchcfm": of_torchcfm(model, data, tuned=False),
                "torchcfm, tuned": of_torchcfm(model, data, tuned=True),
                "chunks": of_library(module, params, data, in_chunks=True),
                "single": of_library(module, params, data, in_chunks=False),
            }
            asked = [
                Comparison("torchcfm / library in single steps", "torchcfm", "single", at_least=ASKED),
                Comparison("torchcfm / library in chunks", "torchcfm", "chunks", at_least=ASKED),
                Comparison("tuned torchcfm / library in single steps", "torchcfm, tuned", "single"),
            ]
            seconds = seconds_per_step(entrants, rounds_at(channels, rounds), warm_ups=1)
            setting = f"{channels} channels, {side} x {side}"
            outcomes += [compare(setting, comparison, seconds) for comparison in asked]
    return outcomes
