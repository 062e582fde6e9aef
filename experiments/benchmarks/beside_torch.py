"""Training of one network by torchcfm and by the library, for the benchmarks that race them: pairing included."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]
from flax import linen
from torchcfm.conditional_flow_matching import (  # pyright: ignore[reportMissingImports]
    ConditionalFlowMatcher,
)

import gft_jax as gft
from experiments.benchmarks.interleaved import Entrant


class Recipe(NamedTuple):
    """How both train: flow matching by Adam, with averaged parameters."""

    batch_size: int
    chunk: int
    """Steps of a block."""
    learning_rate: float
    averaging: float
    noise: float = 0.0
    """Standard deviation of the path's noise."""
    clip: float | None = None
    """Largest norm of the gradient; None for any."""


def entrants(
    recipe: Recipe,
    model: Any,
    call: Callable[[Any, Any, Any], Any],
    rows: Any,
    module: linen.Module,
    params: Any,
    data: np.ndarray,
) -> dict[str, Entrant]:
    """The four programs: torchcfm as its examples have it, and tuned; the library in single steps, and in chunks.

    Args:
        recipe: how they train.
        model: torch's network.
        call: ``(model, t, x)`` -> velocity.
        rows: the data as torch's network takes them.
        module: the same network in Flax.
        params: its parameters.
        data: the data as it takes them.
    """
    return {
        "torchcfm": of_torchcfm(recipe, model, call, rows, tuned=False),
        "torchcfm, tuned": of_torchcfm(recipe, model, call, rows, tuned=True),
        "chunks": of_library(recipe, module, params, data, in_chunks=True),
        "single": of_library(recipe, module, params, data, in_chunks=False),
    }


def of_torchcfm(
    recipe: Recipe, model: Any, call: Callable[[Any, Any, Any], Any], rows: Any, tuned: bool
) -> Entrant:
    """Training with torchcfm: as its examples do it, or with torch's fused Adam and one call for all averages."""
    model, averaged = copy.deepcopy(model), copy.deepcopy(model)
    matcher = ConditionalFlowMatcher(sigma=recipe.noise)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=tuned or None)
    kept, added = recipe.averaging, 1.0 - recipe.averaging

    def average() -> None:
        source, target = model.state_dict(), averaged.state_dict()
        if tuned:
            torch._foreach_lerp_(list(target.values()), list(source.values()), added)
            return
        for name in source:
            target[name].data.copy_(target[name].data * kept + source[name].data * added)

    def run() -> None:
        for _ in range(recipe.chunk):
            optimizer.zero_grad()
            x1 = rows[torch.randint(len(rows), (recipe.batch_size,))]
            t, x, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((call(model, t, x) - velocity) ** 2)
            loss.backward()
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            average()

    return Entrant(run, recipe.chunk)


def of_library(
    recipe: Recipe, module: linen.Module, params: Any, data: np.ndarray, in_chunks: bool
) -> Entrant:
    """Training with the library: in chunks, or step by step."""
    linear = gft.paths.linear()
    path = gft.paths.with_constant_noise(linear, recipe.noise) if recipe.noise else linear
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(module), path)
    adam = optax.adam(recipe.learning_rate)
    clipped = adam if recipe.clip is None else optax.chain(optax.clip_by_global_norm(recipe.clip), adam)
    runner = gft.parallel.single_device(gft.finetuner(objective, clipped, averaging=recipe.averaging))
    stream = gft.pairing.batches(data, batch_size=recipe.batch_size, seed=0)
    state, taken = runner.init(jax.random.key(0), params=params), 0

    def run() -> None:
        nonlocal state, taken
        if in_chunks:
            state, _ = runner.step_many(state, None, stream.many(taken, recipe.chunk))
        else:
            for step in range(taken, taken + recipe.chunk):
                state, _ = runner.step(state, None, stream.batch(step))
        taken += recipe.chunk
        jax.block_until_ready(state)

    return Entrant(run, recipe.chunk)
