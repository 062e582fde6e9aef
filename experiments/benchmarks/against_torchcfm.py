"""Training with the library beside training with torchcfm: same network, same law of the batches, one core.

The network is torchcfm's own MLP, three hidden layers of SELU on position and time, with the same function in Flax.
The data are 2-dimensional moons, as in torchcfm's tutorials. A step draws rows, source, times and noise of the path
(0.1), takes the gradient, and updates by Adam and the average of the parameters. On top of this the library takes the
norm of the gradient and guards against values that are not finite; torch does not.
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
from torchcfm.conditional_flow_matching import (  # pyright: ignore[reportMissingImports]
    ConditionalFlowMatcher,
)
from torchcfm.models import MLP  # pyright: ignore[reportMissingImports]

import gft_jax as gft
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.plain_mlp import PlainMLP, moons

BATCH_SIZE = 256
TITLE = f"torchcfm over gft_jax: plain MLP on 2-dimensional moons, batch {BATCH_SIZE}, one core"
CHUNK = 50
LEARNING_RATE = 1e-3
AVERAGING = 0.999
NOISE = 0.1
ASKED = {64: 4.0, 128: 2.8, 256: 2.4, 512: 1.9}
"""How many times as fast as torchcfm the library is to be, by width."""


def params_of(model: Any) -> dict[str, dict[str, jax.Array]]:
    """The parameters of torchcfm's MLP for `PlainMLP`."""
    linear = [layer for layer in model.net if isinstance(layer, torch.nn.Linear)]
    return {
        f"layer_{number}": {
            "kernel": jnp.array(layer.weight.detach().numpy().T),
            "bias": jnp.array(layer.bias.detach().numpy()),
        }
        for number, layer in enumerate(linear)
    }


def check_same_function(model: Any, module: PlainMLP) -> None:
    """Refuses a comparison of two networks that are not the same function.

    Raises:
        ValueError: if their outputs differ for the same parameters and inputs.
    """
    rng = np.random.default_rng(0)
    t, x = rng.random(64, np.float32), rng.standard_normal((64, 2), np.float32)
    with torch.no_grad():
        theirs = model(torch.cat([torch.from_numpy(x), torch.from_numpy(t)[:, None]], dim=-1)).numpy()
    ours = np.asarray(module.apply({"params": params_of(model)}, jnp.asarray(t), jnp.asarray(x)))
    difference = float(np.max(np.abs(ours - theirs)))
    if not difference <= 1e-5:
        raise ValueError(
            f"the networks of torchcfm and of the benchmark differ by {difference:.2g} for the same parameters: "
            "bring PlainMLP in experiments/plain_mlp.py in line with torchcfm.models.MLP"
        )


def of_torchcfm(model: Any, data: np.ndarray, tuned: bool) -> Entrant:
    """Training with torchcfm: as its examples do it, or with torch's fused Adam and one call for all averages."""
    model, averaged, rows = copy.deepcopy(model), copy.deepcopy(model), torch.from_numpy(data)
    matcher = ConditionalFlowMatcher(sigma=NOISE)
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
            loss = torch.mean((model(torch.cat([x, t[:, None]], dim=-1)) - velocity) ** 2)
            loss.backward()
            optimizer.step()
            average()

    return Entrant(run, CHUNK)


def of_library(module: PlainMLP, params: Any, data: np.ndarray, in_chunks: bool) -> Entrant:
    """Training with the library, pairing included: in chunks, or step by step."""
    path = gft.paths.with_constant_noise(gft.paths.linear(), NOISE)
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module), path)
    tuner = gft.finetuner(objective, optax.adam(LEARNING_RATE), averaging=AVERAGING)
    runner = gft.parallel.single_device(tuner)
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
    """torchcfm's time over the library's, at each width.

    Raises:
        ValueError: if the two networks are not the same function.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = moons()
    outcomes = []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        model, module = MLP(dim=2, w=width, time_varying=True), PlainMLP(width)
        check_same_function(model, module)
        params = params_of(model)
        entrants = {
            "torchcfm": of_torchcfm(model, data, tuned=False),
            "torchcfm, tuned": of_torchcfm(model, data, tuned=True),
            "chunks": of_library(module, params, data, in_chunks=True),
            "single": of_library(module, params, data, in_chunks=False),
        }
        asked = [
            Comparison("torchcfm / library in chunks", "torchcfm", "chunks", at_least=ASKED.get(width)),
            Comparison("torchcfm / library in single steps", "torchcfm", "single"),
            Comparison("tuned torchcfm / library in chunks", "torchcfm, tuned", "chunks"),
        ]
        seconds = seconds_per_step(entrants, rounds_at(width, rounds))
        outcomes += [compare(f"width {width}", comparison, seconds) for comparison in asked]
    return outcomes
