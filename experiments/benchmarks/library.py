"""The library's steps beside each other, and beside a hand-written one."""

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen

import gft_jax as gft
from experiments.benchmarks import handwritten
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.data.digits import shifted_digits
from experiments.plain_mlp import PlainMLP, moons
from gft_jax.loading import init_params
from gft_jax.parallel import Runner

BATCH_SIZE = 256
TITLE = f"Training steps: plain MLP on moons, residual MLP on digits of 64 pixels, batch {BATCH_SIZE}"
CHUNK = 50
LEARNING_RATE = 1e-3
AVERAGING = 0.999
COUPLING_WIDTH = 256
_CHECKED_STEPS = 5
_COUPLINGS = {
    "independent": gft.couplings.independent,
    "exact": gft.couplings.exact,
    "sinkhorn": gft.couplings.sinkhorn,
}


class Work(NamedTuple):
    """A network with parameters, and batches to train it on."""

    module: linen.Module
    """The drift network."""
    params: Any
    """Its parameters, also those of the frozen base."""
    batches: list[gft.Batch]
    """One batch a step."""
    stacked: gft.Batch
    """The same along a leading axis, for ``step_many``."""


def work(module: linen.Module, x1: np.ndarray, batch_size: int, chunk: int) -> Work:
    """Random parameters, none of them zero, and paired batches."""
    params = init_params(module, jax.random.key(0), x1.shape[1:])
    # A last layer of zeros, as at the start, would leave most gradients at zero in the first step.
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.02), params)
    stream = gft.pairing.batches(x1, batch_size=batch_size, seed=0)
    return Work(module, params, [stream.batch(step) for step in range(chunk)], stream.many(0, chunk))


def plain(work: Work) -> gft.FineTuner:
    """Flow matching by the library."""
    objective = gft.objectives.flow_matching(gft.drifts.from_linen(work.module))
    return gft.finetuner(objective, optax.adam(LEARNING_RATE), averaging=AVERAGING)


def gradual(work: Work, base_every: int) -> gft.FineTuner:
    """Gradual fine-tuning while it cools, so that the base is evaluated."""
    objective = gft.objectives.gradual(gft.drifts.from_linen(work.module), base_every=base_every)
    return gft.finetuner(objective, optax.adam(LEARNING_RATE), cooling(), averaging=AVERAGING)


def cooling() -> gft.cooling.Cooling:
    """A schedule whose end no measurement reaches.

    Not a constant: at a constant temperature XLA would drop the choice whether to evaluate the base.
    """
    return gft.cooling.linear(target_weight=(0.05, 1.0), num_steps=10_000_000)


def check_handwritten(work: Work, step: handwritten.Step, tuner: gft.FineTuner) -> None:
    """Refuses a hand-written step that does not lead to the parameters of the library's.

    Raises:
        ValueError: if it does not.
    """
    first = jax.tree.map(lambda leaf: leaf[:_CHECKED_STEPS], work.stacked)
    ours, _ = jax.jit(functools.partial(jax.lax.scan, step))(handwritten.start(work.params), first)
    start = tuner.init(jax.random.key(0), params=work.params)
    library, _ = jax.jit(tuner.step_many)(start, None, first)
    handwritten.check_agreement(ours, library, LEARNING_RATE, _CHECKED_STEPS)


def training(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batches: Sequence[Any], steps: int = CHUNK
) -> Entrant:
    """A block of training, of so many steps: once through the batches, then wait."""

    def run() -> None:
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return Entrant(run, steps)


def entrants(work: Work) -> dict[str, Entrant]:
    """All training programs of one width, each with a state of its own."""
    step = handwritten.flow_matching_step(work.module, LEARNING_RATE, AVERAGING)
    check_handwritten(work, step, plain(work))
    by_hand = jax.jit(step, donate_argnums=0)
    by_hand_many = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches), donate_argnums=0)

    def of_library(runner: Runner, needs_base: bool, many: bool) -> Entrant:
        base = runner.place(work.params) if needs_base else None
        take = runner.step_many if many else runner.step
        state = runner.init(jax.random.key(0), base, work.params)
        batches = [work.stacked] if many else work.batches
        return training(lambda state, batch: take(state, base, batch), state, batches)

    single = gft.parallel.single_device
    return {
        "by hand": training(by_hand, handwritten.start(work.params), work.batches),
        "by hand, chunks": training(by_hand_many, handwritten.start(work.params), [work.stacked]),
        "plain": of_library(single(plain(work)), False, False),
        "plain, chunks": of_library(single(plain(work)), False, True),
        "gradual": of_library(single(gradual(work, 1)), True, False),
        "gradual, base_every 4": of_library(single(gradual(work, 4)), True, False),
        "pmap": of_library(gft.parallel.pmapped(plain(work), jax.local_devices()[:1]), False, False),
    }


def comparisons(width: int) -> list[Comparison]:
    """What is asked at a width."""
    chunks_gain = 1.3 if width <= 64 else 0.97
    return [
        Comparison("library / by hand", "plain", "by hand", at_most=1.05),
        Comparison("library / by hand, chunks", "plain, chunks", "by hand, chunks", at_most=1.05),
        Comparison("gradual / flow matching", "gradual", "plain", at_most=1.45),
        Comparison(
            "gradual, base on a quarter / flow matching", "gradual, base_every 4", "plain", at_most=1.18
        ),
        Comparison("single steps / chunks", "plain", "plain, chunks", at_least=chunks_gain),
        Comparison("pmap over one device / jit", "pmap", "plain"),
    ]


def pairing(x1: np.ndarray, name: str, steps: int) -> Entrant:
    """A block of paired batches under a coupling."""
    stream = gft.pairing.batches(x1, batch_size=BATCH_SIZE, seed=0, coupling=_COUPLINGS[name]())

    def run() -> None:
        for step in range(steps):
            jax.block_until_ready(stream.batch(step))

    return Entrant(run, steps)


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """All comparisons at each width for two networks, and the cost of pairing digits of 64 pixels.

    The plain MLP on moons takes so short steps that all that is not matrix products shows; the residual MLP on digits
    is what the experiments train.

    Raises:
        ValueError: if the hand-written step does not compute what the library's does.
    """
    digits = shifted_digits("unseen-classes", 512).target
    networks = {
        "plain": (lambda width: PlainMLP(width), moons()),
        "residual": (lambda width: gft.networks.ResidualMLP(hidden=width), digits),
    }
    outcomes = []
    for width, (name, (network, x1)) in itertools.product(widths, networks.items()):
        setting = f"{name}, width {width}"
        print(f"measuring {setting}", file=sys.stderr)
        in_race, asked = entrants(work(network(width), x1, BATCH_SIZE, CHUNK)), comparisons(width)
        if name == "residual" and width == COUPLING_WIDTH:
            pairings = {f"pairing, {kind}": pairing(x1, kind, 5) for kind in _COUPLINGS}
            in_race |= pairings
            asked += [Comparison(f"{pairs} / flow matching", pairs, "plain") for pairs in pairings]
        seconds = seconds_per_step(in_race, rounds_at(width, rounds))
        outcomes += [compare(setting, comparison, seconds) for comparison in asked]
    return outcomes
