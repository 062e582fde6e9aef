"""What is bought with cheaper updates of adjoint matching: reward and distance to the base.

Every variant of `variants` fine-tunes one base for a classifier's log-probability of a class of digits, and is scored
after equal numbers of updates and after equal time. A number of updates stands for a time by the median time of an
update, which is measured before, all variants interleaved: so the runs do not depend on what else the machine does.

The same lam asks less of a truncated adjoint than of the full one, so each has lams of its own (`STRENGTHS`), chosen by
one seed such that the full adjoint and the last three steps come to about the same rewards after 200 updates.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import gft_jax as gft
from experiments.base_flow import pretrained_base
from experiments.benchmarks.interleaved import Entrant, rounds_at, seconds_per_step
from experiments.benchmarks.variants import FULL, NUM_STEPS, VARIANTS, Variant, objective_of
from experiments.configs.reward import DEFAULTS
from experiments.configs.reward import Reward as Settings
from experiments.methods import PATHS
from experiments.reward.evaluation import Scorer
from experiments.reward.methods import at_strength, optimizer_of
from experiments.reward.names import parse_method
from experiments.reward.problem import Problem, problem_of
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Drift, Params

STRENGTHS: Mapping[bool, tuple[float, ...]] = {True: (3.0, 1.0), False: (1.6, 1.0)}
"""lam of the full adjoint (True), and of the others: a weak and a strong one."""
LEARNING_RATE = 3e-4
EQUAL_UPDATES = (60, 200)
"""Numbers of updates after which all are scored."""
EQUAL_TIME = 40
"""Updates of the full adjoint whose time all others are given, too."""
_FRACTIONS = (0.125, 0.25, 0.5)
"""Parts of that time after which runs are scored, too, for the figure."""


class Plan(NamedTuple):
    """How much is done."""

    config: Settings
    """Of the base, the reward, batches and optimiser."""
    variants: Mapping[str, Variant]
    """What is compared; `FULL` is among them."""
    seeds: Sequence[int]
    """Seeds of the runs: their noise."""
    rounds: int
    """Rounds of the measurement of times, at width 256 and above."""
    equal_updates: Sequence[int]
    """Numbers of updates after which all are scored."""
    equal_time: int
    """Updates of the full adjoint whose time all are given."""


class Score(NamedTuple):
    """A run at one moment."""

    variant: str
    strength: float
    """lam."""
    level: int
    """Place of lam among those of the variant."""
    seed: int
    updates: int
    seconds: float
    """Time of so many updates, by the median."""
    scores: dict[str, float]
    """What `Scorer` says of it."""


class Outcome(NamedTuple):
    """All that was found."""

    seconds: dict[str, float]
    """Median time of an update, by variant."""
    at_time: dict[str, int]
    """Number of updates in the time that all have, by variant."""
    base: dict[str, float]
    """Scores of the base."""
    scores: list[Score]
    """Scores of all runs."""


def plan_of(width: int, rounds: int, quick: bool) -> Plan:
    """The plan of the benchmark: the digits of the reward experiment, by a network of this width.

    Args:
        width: of the network.
        rounds: of the measurement of times.
        quick: one seed, and next to no training, to see that all of it runs.
    """
    config = replace(DEFAULTS["digits"], hidden=width, batch_size=128, learning_rate=LEARNING_RATE)
    if quick:
        config = replace(config, base_steps=50, classifier_steps=50)
        return Plan(config, VARIANTS, (0,), rounds, (4, 8), 2)
    return Plan(config, VARIANTS, (0, 1, 2), rounds, EQUAL_UPDATES, EQUAL_TIME)


def strengths_of(name: str) -> tuple[float, ...]:
    """The lams of a variant."""
    return STRENGTHS[name == FULL]


def whole_steps(updates: float, num_updates: int) -> int:
    """The nearest number of updates, not zero, that is a multiple of those on a path."""
    return num_updates * max(1, round(updates / num_updates))


def marks(num_updates: int, equal_updates: Sequence[int], at_time: int) -> list[int]:
    """Numbers of updates after which a run is scored."""
    moments = {*equal_updates, at_time, *(fraction * at_time for fraction in _FRACTIONS)}
    return sorted({whole_steps(moment, num_updates) for moment in moments})


def runner_of(variant: Variant, config: Settings, drift: Drift, problem: Problem) -> Runner:
    """The compiled step of a variant for all strengths: ``1 / lam`` is the condition of each row, see `at_strength`."""

    def unconditional(params: Any, t: jax.Array, x: jax.Array, cond: Any = None, /) -> jax.Array:
        return drift(params, t, x, None)

    def scaled(x: jax.Array, cond: Any = None, /) -> jax.Array:
        return cond * problem.reward(x)

    objective = objective_of(variant, unconditional, scaled, 1.0)
    tuner = gft.finetuner(objective, optimizer_of(config), averaging=None, num_updates=variant.num_updates)
    return gft.parallel.single_device(tuner)


def times(
    variants: Mapping[str, Variant],
    runners: Mapping[str, Runner],
    base_params: Params,
    batch: gft.Batch,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of an update; this compiles the steps, so that no run does."""

    def entrant(name: str) -> Entrant:
        state = runners[name].init(jax.random.key(0), base_params)

        def run() -> None:
            nonlocal state
            state, _ = runners[name].step(state, base_params, batch)
            jax.block_until_ready(state)

        return Entrant(run, variants[name].num_updates)

    seconds = seconds_per_step({name: entrant(name) for name in variants}, rounds)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def trained(
    runner: Runner, num_updates: int, base_params: Params, stream: Batches, moments: Sequence[int]
) -> list[Params]:
    """Parameters after these numbers of updates, all multiples of the number on a path.

    Raises:
        ValueError: if a step was not finite.
    """
    state, finite, found = runner.init(jax.random.key(0), base_params), [], []
    for step in range(moments[-1] // num_updates):
        state, info = runner.step(state, base_params, stream.batch(step))
        finite.append(info.is_finite)
        if (step + 1) * num_updates in moments:
            found.append(runner.fetch(state.params))
    if not np.all(jax.device_get(finite)):
        raise ValueError("a training step was not finite: its score would say nothing")
    return found


def measure(plan: Plan, cache: Path) -> Outcome:
    """Trains the base, measures times, then trains and scores every variant at every strength with every seed.

    Args:
        plan: how much is done.
        cache: folder where the base is kept.
    """
    config = plan.config
    problem = problem_of(config)._replace(kernel=None)  # a Vendi score takes as long as many updates
    module = gft.networks.ResidualMLP(hidden=config.hidden, depth=config.depth)
    drift = gft.drifts.from_linen(module)
    base_params = pretrained_base(config, problem.data, module, drift, PATHS[config.path](), cache)
    evaluate = Scorer(drift, base_params, problem, NUM_STEPS).evaluate_at(None)
    streams = {
        seed: gft.pairing.source_batches(
            gft.pairing.standard_normal(problem.data.shape[1:]), batch_size=config.batch_size, seed=seed
        )
        for seed in plan.seeds
    }
    method = parse_method("am-full")  # of all adjoint matching, the strength is lam
    runners = {name: runner_of(variant, config, drift, problem) for name, variant in plan.variants.items()}
    batch = at_strength(streams[plan.seeds[0]], method, 1.0).batch(0)
    print("measuring times", file=sys.stderr)
    seconds = times(plan.variants, runners, base_params, batch, rounds_at(config.hidden, plan.rounds))
    at_time, scores = {}, []
    for name, variant in plan.variants.items():
        number = variant.num_updates
        at_time[name] = whole_steps(plan.equal_time * seconds[FULL] / seconds[name], number)
        moments = marks(number, plan.equal_updates, at_time[name])
        for level, strength in enumerate(strengths_of(name)):
            print(f"{name}, lambda {strength:g}: {moments[-1]} updates", file=sys.stderr)
            for seed in plan.seeds:
                stream = at_strength(streams[seed], method, strength)
                found = trained(runners[name], number, base_params, stream, moments)
                scores += [
                    Score(name, strength, level, seed, moment, moment * seconds[name], evaluate(params)[0])
                    for moment, params in zip(moments, found, strict=True)
                ]
    return Outcome(seconds, at_time, evaluate(base_params)[0], scores)
