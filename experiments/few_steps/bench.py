"""What the methods of a few_steps run share: networks of one and of two times, scores, pairs, compiled steps."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gft_jax as gft
from experiments.configs.few_steps import FewSteps
from experiments.data.shifted import ShiftedData
from experiments.evaluator import Evaluate, evaluator, floor
from experiments.few_steps.methods import FEW_STEP_METHODS, NO_PATH_KL, num_rounds
from experiments.few_steps.scores import SampleAll, by_average, by_euler, few_step_scores, sampler_of
from experiments.loop import Loop, Watch
from experiments.methods import METHODS, Method
from experiments.run_folder import RunFolder
from experiments.workbench import Workbench
from gft_jax.loading import init_params
from gft_jax.networks import two_time_params
from gft_jax.pairing import Batches
from gft_jax.types import Drift, Params

PAIR_SEED = 20_261_124
SEEDS_OF_A_ROUND = 1_000_000
"""So that each round of reflow learns from samples of noise that the one before has not seen."""
SECOND_TIME_SEED = 0
"""Of the parameters of the second time, as `gft_jax.load` makes them for the base."""


class FewStepsBench(Workbench):
    """Makes the training loops; base, scores and pairs are made once."""

    config: FewSteps

    def __init__(self, config: FewSteps, data: ShiftedData):
        module = gft.networks.ResidualMLP(config.hidden, config.depth, max_frequency=config.max_frequency)
        super().__init__(config, data, module)
        self.two_time_module = self.module.clone(two_times=True)
        self.average = gft.drifts.two_times(gft.drifts.from_linen(self.two_time_module))
        self._of_average = gft.drifts.instantaneous(self.average)
        self._pairs: dict[tuple[str, int], gft.reflow.Pairs] = {}
        self._samplers: dict[bool, SampleAll] = {}
        self._scores: dict[bool, Evaluate] = {}

    @property
    def two_time_methods(self) -> tuple[str, ...]:
        """The methods of a few_steps run that learn an average velocity."""
        return tuple(name for name in self.config.stages if FEW_STEP_METHODS[name].two_times)

    def velocity(self, name: str) -> Drift:
        """The velocity of a method's flow."""
        return self._of_average if FEW_STEP_METHODS[name].two_times else self.drift

    def sampler(self, name: str) -> SampleAll:
        """Samples of a method in each number of evaluations, compiled once for all methods of a kind."""
        two_times = FEW_STEP_METHODS[name].two_times
        if two_times not in self._samplers:
            flow = by_average(self.average) if two_times else by_euler(self.drift)
            self._samplers[two_times] = sampler_of(flow, self.data)
        return self._samplers[two_times]

    def start(self, name: str, base_params: Params) -> Params:
        """The base's parameters in the network of a method: the same velocity, whatever the second time."""
        if not FEW_STEP_METHODS[name].two_times:
            return base_params
        fresh = init_params(self.two_time_module, jax.random.key(SECOND_TIME_SEED), self.event_shape)
        return two_time_params(base_params, fresh)

    def prepare_all(self, folder: RunFolder, cache: Path) -> tuple[Params, np.ndarray]:
        """Base parameters, trained now or found, and samples of the base; logs the scores of the base and of real data.

        Raises:
            Stopped: if the semi-discrete coupling does not converge.
        """
        base_params, first = self.base(folder, cache), self.config.seeds[0]
        coupled = self._first_coupled()
        if coupled is not None:
            # One that does not converge is to be told before all training.
            self.stream(coupled, first, base_params)
        folder.log_once({"kind": "no path KL", "seed": first, "reason": NO_PATH_KL})
        folder.log_once({"kind": "floor", "seed": first, **floor(self.data)})
        scores, samples = self.evaluate("plain", base_params)(base_params)
        folder.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **scores})
        return base_params, samples

    def evaluate(self, name: str, base_params: Params) -> Evaluate:
        """The scores of a method's parameters, compiled once for all methods of a kind."""
        two_times = FEW_STEP_METHODS[name].two_times
        if two_times not in self._scores:
            of_drift = evaluator(
                self.velocity(name),
                self.start(name, base_params),
                self.data,
                self.path,
                self.config.sampling_steps,
            )
            self._scores[two_times] = few_step_scores(self.sampler(name), self.data, of_drift)
        return self._scores[two_times]

    def method(self, name: str) -> Method:
        """Objective, cooling and optimiser of a method, whose cooling ends within its own steps."""
        kind, config = (
            FEW_STEP_METHODS[name],
            dataclasses.replace(self.config, steps=self.config.steps_of(name)),
        )
        method = METHODS["gradual-linear" if kind.gradual else "plain"](config, self.drift, self.path)
        if not kind.two_times:
            return method
        options: dict[str, Any] = {
            "time_sampler": self.path.times,
            "same_time": config.same_time,
            "adaptive_power": kind.adaptive_power,
        }
        of_average = gft.objectives.gradual_mean_flow if kind.gradual else gft.objectives.mean_flow
        return method._replace(objective=of_average(self.average, self.path.path, **options))

    def make_pairs(self, folder: RunFolder, name: str, seed: int, params: Params) -> None:
        """The pairs that a round of reflow learns from, made now or found in RUN/pairs.

        Args:
            folder: of the run.
            name: of the method.
            seed: of the run.
            params: of the method that it continues.
        """
        flow, num_steps = by_euler(self.drift), self.config.pair_steps
        self._pairs[name, seed] = gft.reflow.make_pairs(
            folder.path / "pairs" / f"{name}-seed{seed}",
            lambda params, x0, cond: flow(params, x0, num_steps),
            params,
            gft.pairing.standard_normal(self.event_shape),
            num_pairs=self.config.num_pairs,
            seed=PAIR_SEED + num_rounds(name) * SEEDS_OF_A_ROUND + seed,
            settings={"num_steps": num_steps},
            progress=folder.is_writer,
        )

    def stream(self, name: str, seed: int, base_params: Params) -> Batches:
        """Training batches of a method: of data, or of the pairs that were made."""
        if FEW_STEP_METHODS[name].after is None:
            return super().stream(name, seed, base_params)
        return gft.reflow.batches(self._pairs[name, seed], batch_size=self.config.batch_size, seed=seed)

    def watch(self, folder: RunFolder, name: str, seed: int) -> Watch:
        """As of any adaptation; adds what training has cost so far."""
        keep = super().watch(folder, name, seed)

        def cost(step: int, samples: np.ndarray) -> dict[str, float]:
            kept = {} if keep is None else keep(step, samples)
            return {**kept, "forward_evaluations": self.config.cost_at(name, step)}

        return cost

    def loop(self, folder: RunFolder, name: str, seed: int, base_params: Params) -> Loop:
        """The training loop of a method and seed, for as many steps as its cost allows."""
        config, interval = self.config, self.config.interval_of(name)

        def own(every: int | None) -> int | None:
            """Steps of plain as those of the method after which as much of the run is over."""
            return None if every is None else every // config.eval_every * interval

        loop = super().loop(folder, name, seed, base_params)
        return loop._replace(
            num_steps=config.steps_of(name),
            chunk=interval,
            checkpoint_every=own(config.checkpoint_every),
            keep_every=own(config.keep_every),
        )
