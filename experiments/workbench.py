"""What all methods and seeds of a run share: network, path, data, and one compiled step for each method."""

from pathlib import Path

import jax
import numpy as np
from flax import linen

import gft_jax as gft
from experiments.base_flow import base_of_run, samples_of_base
from experiments.configs.settings import FineTuningCouplingName, Settings
from experiments.data.shifted import ShiftedData
from experiments.devices import runner_of
from experiments.evaluator import (
    NOISE_SEED,
    Evaluate,
    coupled_pairs,
    evaluator,
    floor,
    path_kl_to_base,
)
from experiments.loop import Loop, Stopped, Watch
from experiments.methods import METHODS, PATHS, Method, coupling_of
from experiments.planar import is_planar, snapshot_keeper
from experiments.run_folder import RunFolder
from experiments.semi_discrete import potentials_of_run
from gft_jax.checkpoints import Best
from gft_jax.couplings import Coupling, SemidiscretePotentials
from gft_jax.loading import init_params
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Params

REPLAY_SEED = 20_260_513


class Workbench:
    """Makes the training loops of an experiment; what is compiled or sampled is made once."""

    def __init__(self, config: Settings, data: ShiftedData, module: linen.Module | None = None):
        self.config, self.data = config, data
        self.event_shape = tuple(data.target.shape[1:])
        self.path = PATHS[config.path]()
        self.module = gft.networks.ResidualMLP(config.hidden, config.depth) if module is None else module
        self.drift = gft.drifts.from_linen(self.module)
        self._runners: dict[str, Runner] = {}
        self._replayed: tuple[Params, np.ndarray] | None = None
        self._couplings: tuple[Params, dict[FineTuningCouplingName, Coupling]] | None = None
        self._potentials: SemidiscretePotentials | None = None

    def fresh_params(self, seed: int) -> Params:
        """Random parameters of the network."""
        return init_params(self.module, jax.random.key(seed), self.event_shape)

    def method(self, name: str) -> Method:
        """Objective, cooling and optimiser of a method."""
        return METHODS[name](self.config, self.drift, self.path)

    def runner(self, name: str) -> Runner:
        """The step of a method, compiled once for all seeds."""
        if name not in self._runners:
            method = self.method(name)
            tuner = gft.finetuner(method.objective, method.optimizer, method.cooling)
            self._runners[name] = runner_of(self.config, tuner, self.module)
        return self._runners[name]

    def base(self, folder: RunFolder, cache: Path) -> Params:
        """Base parameters, trained now or found; before them the potentials of the semi-discrete coupling.

        Args:
            folder: of the run; the potentials are kept there.
            cache: where bases are kept for all runs.

        Raises:
            Stopped: if the semi-discrete coupling does not converge.
        """
        config = self.config
        if config.coupling == "semi-discrete":
            self._potentials = potentials_of_run(folder, self.data.target, config.seeds[0])
        base, names = self.data.base, self.two_time_methods
        return base_of_run(config, folder, base, self.module, self.drift, self.path, cache, names)

    @property
    def two_time_methods(self) -> tuple[str, ...]:
        """The methods that train the network with a second time."""
        return ()

    def prepare(
        self, folder: RunFolder, cache: Path, with_path_kl: bool = True
    ) -> tuple[Params, Evaluate, np.ndarray]:
        """Base parameters, trained now or found, the scores, and samples of the base.

        Logs the scores of the base and of real data, and why there is no path KL where it cannot be had.

        Args:
            folder: of the run.
            cache: where bases are kept for all runs.
            with_path_kl: whether the path KL is among the scores; an evaluation takes up to a third longer with it.

        Raises:
            Stopped: if the semi-discrete coupling does not converge.
        """
        config = self.config
        base_params = self.base(folder, cache)
        pairs = None
        if config.coupling != "independent":
            stream = self._batches(config.batch_size, NOISE_SEED, base_params, config.coupling)
            pairs = coupled_pairs(stream, len(self.data.target))
        first, path_kl = config.seeds[0], None  # base and floor are the same for all seeds
        if with_path_kl:
            try:
                coupling = self._coupling(base_params, config.coupling)
                path_kl = path_kl_to_base(
                    self.drift, self.path.path, coupling, self.event_shape, config.sampling_steps
                )
            except ValueError as reason:
                folder.log_once({"kind": "no path KL", "seed": first, "reason": str(reason)})
        evaluate = evaluator(
            self.drift, base_params, self.data, self.path, config.sampling_steps, pairs, path_kl
        )
        folder.log_once({"kind": "floor", "seed": first, **floor(self.data)})
        scores, samples = evaluate(base_params)
        folder.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **scores})
        return base_params, evaluate, samples

    def stream(self, name: str, seed: int, base_params: Params) -> Batches:
        """Training batches of a method.

        Raises:
            Stopped: if the coupling of the first batch does not converge.
        """
        config, every = self.config, self.config.controls.replay_every
        replays = self.method(name).replays
        num_replayed = config.batch_size // every if replays else 0
        coupling = config.coupling_of(name)
        stream = self._batches(config.batch_size - num_replayed, seed, base_params, coupling)
        try:
            gft.couplings.require_converged(stream.pairing(0))
        except ValueError as error:
            raise Stopped(f"the {coupling} coupling does not converge on this data: {error}") from error
        if not replays:
            return stream
        replay = self._replay(num_replayed, seed + REPLAY_SEED, base_params)
        return gft.pairing.interleaved(stream, replay, every=every)

    def _replay(self, batch_size: int, seed: int, base_params: Params) -> Batches:
        """Batches of base samples, for rehearsal."""
        return gft.pairing.batches(self._base_samples(base_params), batch_size=batch_size, seed=seed)

    def _batches(
        self, batch_size: int, seed: int, base_params: Params, coupling: FineTuningCouplingName
    ) -> Batches:
        """Batches of the data of fine-tuning under a coupling."""
        x1 = self.data.target
        if coupling == "semi-discrete":
            assert self._potentials is not None, "the base comes first"
            return gft.pairing.chosen_batches(x1, self._potentials, batch_size=batch_size, seed=seed)
        return gft.pairing.batches(
            x1,
            batch_size=batch_size,
            seed=seed,
            coupling=self._coupling(base_params, coupling),
            pair_size=batch_size * (1 if coupling == "independent" else self.config.coupled_batches),
        )

    def _coupling(self, base_params: Params, name: FineTuningCouplingName) -> Coupling:
        """How noise and data are paired: one object for all streams of a base, which then share their program."""
        if self._couplings is None or self._couplings[0] is not base_params:
            self._couplings = base_params, {}
        made = self._couplings[1]
        if name not in made:
            made[name] = coupling_of(name, self.drift, base_params)
        return made[name]

    def _first_coupled(self) -> str | None:
        """The first method that does not pair at random, if there is one."""
        names = (name for name in self.config.methods if self.config.coupling_of(name) != "independent")
        return next(names, None)

    def _base_samples(self, base_params: Params) -> np.ndarray:
        """Samples of the base, for rehearsal: always the same ones, sampled once."""
        if self._replayed is None or self._replayed[0] is not base_params:
            shape = (self.config.controls.num_replay, *self.event_shape)
            num_steps = self.config.sampling_steps
            samples = samples_of_base(self.drift, base_params, shape, num_steps, REPLAY_SEED)
            self._replayed = base_params, samples
        return self._replayed[1]

    def watch(self, folder: RunFolder, name: str, seed: int) -> Watch | None:
        """What sees the evaluations of a method and seed: the keeper of moving points, of the first seed."""
        planar = is_planar(self.event_shape) and seed == self.config.seeds[0]
        return snapshot_keeper(folder.path, name) if planar and folder.is_writer else None

    def loop(self, folder: RunFolder, name: str, seed: int, base_params: Params) -> Loop:
        """The training loop of a method and seed."""
        config, method = self.config, self.method(name)
        is_first = (name, seed) == (config.methods[0], config.seeds[0])
        return Loop(
            run=folder,
            method=name,
            seed=seed,
            runner=self.runner(name),
            # Every process pairs all rows, so that a run does not depend on how many there are.
            stream=gft.pairing.share_of(self.stream(name, seed, base_params), gft.parallel.share()),
            num_steps=config.steps,
            chunk=config.eval_every,
            rate_flag="--learning-rate" if method.from_base else "--base-learning-rate",
            evaluated=method.evaluated,
            # The pairs are the same for all methods under the coupling, but for those that replay.
            diagnoses_coupling=name == self._first_coupled(),
            objective=method.objective,
            best=Best("w2"),
            checkpoint_every=config.checkpoint_every,
            keep_every=config.keep_every,
            log_every=config.log_every,
            skips=config.skip_non_finite,
            profile=config.profile if is_first else None,
        )
