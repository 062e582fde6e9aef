"""Steps on average velocities, plain and gradual, beside those of flow matching.

The network is the same but for the second time, which flow matching has no use for. A gradual step is taken while it
cools, so that the base is evaluated: one copy of the parameters that training starts at.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import linen

import gft_jax as gft
from experiments.benchmarks import library
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.benchmarks.library import AVERAGING, BATCH_SIZE, CHUNK, LEARNING_RATE, Work
from experiments.data.digits import shifted_digits

SIT = gft.networks.SiT.preset("S/2", scan=True)
LATENT, SIT_BATCH = (16, 16, 4), 8
TITLE = (
    f"Average velocities: residual MLP on digits of 64 pixels, batch {BATCH_SIZE}; SiT-S/2, its blocks in a loop, on "
    f"latents of {' x '.join(map(str, LATENT))}, batch {SIT_BATCH}"
)
SAME_TIMES = (0.75, 0.5, 0.0)
"""Fractions of the rows with s = t; the first is the library's default."""
AT_MOST = 2.2
"""How many times as long as one of flow matching a step at that default may take."""
_FLOW_MATCHING = "flow matching"


class Setting(NamedTuple):
    """A network, and what it is trained on."""

    name: str
    """As the table has it."""
    module: linen.Module
    """The network of one time."""
    x1: np.ndarray
    """Rows of data ``[rows, *event]``."""
    batch_size: int
    """Rows of a batch, a multiple of 4."""
    chunk: int
    """Steps of a block."""
    rounds: int
    """How often each program runs."""


def settings(widths: Sequence[int], rounds: int) -> list[Setting]:
    """The residual MLP at each width, and SiT."""
    digits = shifted_digits("unseen-classes", 512).target
    latents = np.random.default_rng(0).standard_normal((SIT_BATCH, *LATENT)).astype(np.float32)
    return [
        Setting(
            f"residual, width {width}",
            gft.networks.ResidualMLP(hidden=width),
            digits,
            BATCH_SIZE,
            CHUNK,
            rounds_at(width, rounds),
        )
        for width in widths
    ] + [Setting("SiT-S/2", SIT, latents, SIT_BATCH, 1, rounds)]


def mean_flow(work: Work, same_time: float) -> gft.FineTuner:
    """MeanFlow of a two-time network."""
    objective = gft.objectives.mean_flow(_drift(work), same_time=same_time)
    return gft.finetuner(objective, optax.adam(LEARNING_RATE), averaging=AVERAGING)


def gradual_mean_flow(work: Work, same_time: float) -> gft.FineTuner:
    """The same while it cools, so that the base is evaluated."""
    objective = gft.objectives.gradual_mean_flow(_drift(work), same_time=same_time)
    return gft.finetuner(objective, optax.adam(LEARNING_RATE), library.cooling(), averaging=AVERAGING)


def _drift(work: Work) -> gft.TwoTimeDrift:
    return gft.drifts.two_times(gft.drifts.from_linen(work.module))


_METHODS = {"mean flow": mean_flow, "gradual mean flow": gradual_mean_flow}


def entrants(setting: Setting) -> dict[str, Entrant]:
    """All training programs of a setting, each with a state of its own, on the same batches."""
    one, two = (
        library.work(module, setting.x1, setting.batch_size, setting.chunk)
        for module in (setting.module, setting.module.clone(two_times=True))
    )

    def of(tuner: gft.FineTuner, work: Work, needs_base: bool) -> Entrant:
        runner = gft.parallel.single_device(tuner)
        base = runner.place(work.params) if needs_base else None
        state = runner.init(jax.random.key(0), base, work.params)
        return library.training(
            lambda state, batch: runner.step(state, base, batch), state, work.batches, setting.chunk
        )

    return {_FLOW_MATCHING: of(library.plain(one), one, False)} | {
        _named(method, same_time): of(tuner(two, same_time), two, tuner is gradual_mean_flow)
        for method, tuner in _METHODS.items()
        for same_time in SAME_TIMES
    }


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Steps on average velocities over those of flow matching; SiT is measured once, whatever the widths."""
    asked = [
        Comparison(
            f"{_named(method, same_time)} / {_FLOW_MATCHING}",
            _named(method, same_time),
            _FLOW_MATCHING,
            at_most=AT_MOST if same_time == SAME_TIMES[0] else None,
        )
        for same_time in SAME_TIMES
        for method in _METHODS
    ]
    outcomes = []
    for setting in settings(widths, rounds):
        print(f"measuring {setting.name}", file=sys.stderr)
        seconds = seconds_per_step(entrants(setting), setting.rounds)
        outcomes += [compare(setting.name, comparison, seconds) for comparison in asked]
    return outcomes


def _named(method: str, same_time: float) -> str:
    return f"{method}, same_time={same_time:g}"
