"""Training with the library beside training with torchcfm: same network, same law of the batches, one core.

The network is torchcfm's own MLP, three hidden layers of SELU on position and time, with the same function in Flax.
The data are 2-dimensional moons, as in torchcfm's tutorials. A step draws rows, source, times and noise of the path
(0.1), takes the gradient, and updates by Adam and the average of the parameters. On top of this the library takes the
norm of the gradient and guards against values that are not finite; torch does not.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torchcfm.models import MLP  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.beside_torch import Recipe, entrants
from experiments.benchmarks.interleaved import (
    Comparison,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.plain_mlp import PlainMLP, moons

RECIPE = Recipe(batch_size=256, chunk=50, learning_rate=1e-3, averaging=0.999, noise=0.1)
TITLE = f"torchcfm over gft_jax: plain MLP on 2-dimensional moons, batch {RECIPE.batch_size}, one core"
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
        theirs = _velocity(model, torch.from_numpy(t), torch.from_numpy(x)).numpy()
    ours = np.asarray(module.apply({"params": params_of(model)}, jnp.asarray(t), jnp.asarray(x)))
    difference = float(np.max(np.abs(ours - theirs)))
    if not difference <= 1e-5:
        raise ValueError(
            f"the networks of torchcfm and of the benchmark differ by {difference:.2g} for the same parameters: "
            "bring PlainMLP in experiments/plain_mlp.py in line with torchcfm.models.MLP"
        )


def _velocity(model: Any, t: Any, x: Any) -> Any:
    return model(torch.cat([x, t[:, None]], dim=-1))


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
        programs = entrants(RECIPE, model, _velocity, torch.from_numpy(data), module, params_of(model), data)
        asked = [
            Comparison("torchcfm / library in chunks", "torchcfm", "chunks", at_least=ASKED.get(width)),
            Comparison("torchcfm / library in single steps", "torchcfm", "single"),
            Comparison("tuned torchcfm / library in chunks", "torchcfm, tuned", "chunks"),
        ]
        seconds = seconds_per_step(programs, rounds_at(width, rounds))
        outcomes += [compare(f"width {width}", comparison, seconds) for comparison in asked]
    return outcomes
