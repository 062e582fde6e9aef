"""The reward experiment: one base, a reward, and a training run for every method, strength and seed."""

import functools
from pathlib import Path

import numpy as np

import gft_jax as gft
from experiments.base_flow import base_of_run
from experiments.configs.reward import Reward as Settings
from experiments.devices import check_devices, runner_of
from experiments.files import write_arrays
from experiments.loop import Loop, Stopped
from experiments.methods import PATHS
from experiments.reward.diagnostics import check_adjoints, means
from experiments.reward.evaluation import Scorer
from experiments.reward.methods import at_strength, objective_of, optimizer_of
from experiments.reward.names import parse_method, split_run
from experiments.reward.problem import Problem, problem_of
from experiments.run_folder import RunFolder, open_run
from experiments.summary import Record, read_metrics
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Params

NUM_CHECKED = 64
"""Samples of the base on which the reward is checked."""
NUM_KEPT = 256
"""Samples of each run that are kept for the pictures."""
TILTED_STRENGTHS = tuple(np.geomspace(0.1, 50.0, 20).tolist())
"""Strengths lam of the tilted laws in the figure; those that are not known well enough are left out."""


def raise_reward(config: Settings, root: Path) -> RunFolder:
    """Fine-tunes the base by every method, strength and seed; a run that diverges is logged, and the others go on.

    Args:
        config: settings, checked.
        root: where run folders and bases are.
    """
    check_devices(config)
    runs = config.runs()
    facts = {"methods": list(runs), "seeds": list(config.seeds), **config.facts()}
    folder = open_run(config, root, facts | {"num_evaluations": config.sampling_steps})
    print(f"run folder: {folder.path}")
    problem = problem_of(config)
    folder.add_facts(problem.facts)
    bench = Bench(config, problem)
    base_params = bench.base(folder, root / "base")
    scorer = Scorer(bench.drift, base_params, problem, config.sampling_steps)
    gft.rewards.check(problem.reward, scorer.base_samples[:NUM_CHECKED])
    record_references(folder, config, problem, scorer, base_params)
    diverged = {
        (row["method"], row["seed"]) for row in read_metrics(folder.path) if row["kind"] == "diverged"
    }
    samples = {"real": problem.real, "base": scorer.base_samples}
    for seed in config.seeds:
        stream = bench.stream(seed)
        for name in runs:
            if (name, seed) in diverged:
                print(f"{name} (seed {seed}): diverged before")
                continue
            evaluate = scorer.evaluate_at(strength_of(name))
            loop = bench.loop(folder, name, seed, stream)
            try:
                params = loop.train(base_params, None, evaluate)
            except Stopped as error:
                folder.log([{"kind": "diverged", "method": name, "seed": seed, "reason": str(error)}])
                print(f"diverged: {error}")
                continue
            if seed == config.seeds[0]:
                samples[name] = evaluate(params)[1]
    if folder.is_writer:
        write_arrays(folder.path / "samples.npz", {name: x[:NUM_KEPT] for name, x in samples.items()})
    return folder


def strength_of(run: str) -> float | None:
    """lam of a run, METHOD@STRENGTH; None of a method whose strength is another."""
    method, strength = split_run(run)
    return strength if parse_method(method).has_cost_weight else None


def record_references(
    folder: RunFolder, config: Settings, problem: Problem, scorer: Scorer, base_params: Params
) -> None:
    """Logs the base, real samples, and tilted laws for the curve in the figure."""
    first, base = config.seeds[0], scorer.evaluate_at(None)(base_params)[0]
    folder.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **base})
    real = scorer.of_samples(problem.real) | problem.judge(problem.real)
    folder.log_once({"kind": "floor", "seed": first, **real})
    if problem.tilted is None:
        return
    for step, strength in enumerate(TILTED_STRENGTHS):
        points = problem.tilted.draw(strength, len(scorer.base_samples))
        if points is not None:
            row: Record = {"kind": "tilted", "seed": first, "step": step, "strength": strength}
            exact = {"reward": problem.tilted.mean_reward(strength)}
            folder.log_once(row | scorer.of_samples(points) | exact)


class Bench:
    """What all runs share: network, path, and one compiled step for each method, whatever its strength."""

    def __init__(self, config: Settings, problem: Problem):
        self.config, self.problem = config, problem
        self.path = PATHS[config.path]()
        self.module = gft.networks.ResidualMLP(hidden=config.hidden, depth=config.depth)
        self.drift = gft.drifts.from_linen(self.module)
        self._runners: dict[str, Runner] = {}

    def base(self, folder: RunFolder, cache: Path) -> Params:
        """Parameters of the base, trained now or found."""
        return base_of_run(self.config, folder, self.problem.data, self.module, self.drift, self.path, cache)

    def stream(self, seed: int) -> Batches:
        """Batches of noise; those of a seed are the same for every method and strength."""
        source = gft.pairing.standard_normal(self.problem.data.shape[1:])
        share = gft.parallel.share()
        return gft.pairing.source_batches(source, batch_size=self.config.batch_size, seed=seed, share=share)

    def runner(self, name: str) -> Runner:
        """The step of a method."""
        if name not in self._runners:
            objective = objective_of(
                parse_method(name), self.config, self.drift, self.path, self.problem.reward
            )
            tuner = gft.finetuner(objective, optimizer_of(self.config))
            self._runners[name] = runner_of(self.config, tuner, self.module)
        return self._runners[name]

    def loop(self, folder: RunFolder, run: str, seed: int, stream: Batches) -> Loop:
        """The training loop of a run, METHOD@STRENGTH, and seed."""
        name, strength = split_run(run)
        assert strength is not None, "a run has a strength"
        is_first = (run, seed) == (self.config.runs()[0], self.config.seeds[0])
        return Loop(
            run=folder,
            method=run,
            seed=seed,
            runner=self.runner(name),
            stream=at_strength(stream, parse_method(name), strength),
            num_steps=self.config.steps,
            chunk=self.config.eval_every,
            rate_flag="--learning-rate, or with a weaker strength",
            evaluated=lambda params, base_params: params,
            check=functools.partial(check_adjoints, self.config.adjoint_limit),
            diagnose=means,
            checkpoint_every=self.config.checkpoint_every,
            keep_every=self.config.keep_every,
            log_every=self.config.log_every,
            skips=self.config.skip_non_finite,
            profile=self.config.profile if is_first else None,
        )
