"""What the methods of a terminal run share beyond those of any adaptation: the log-ratio, and the laws in between."""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import gft_jax as gft
from experiments.base_flow import samples_of_base
from experiments.configs.terminal import Terminal
from experiments.data.shifted import ShiftedData
from experiments.evaluator import Evaluate
from experiments.loop import Loop, Watch
from experiments.methods import Method
from experiments.reward.diagnostics import check_adjoints, means
from experiments.run_folder import RunFolder
from experiments.terminal.methods import TERMINAL_METHODS, method_of
from experiments.terminal.ratio import ratio_of, record_ratio
from experiments.terminal.tempered import TemperedLaws
from experiments.workbench import Workbench
from gft_jax.cooling import Cooling
from gft_jax.density_ratio import DensityRatio
from gft_jax.pairing import Batches
from gft_jax.types import Params

BASE_SEED = 20_261_121
NUM_LAW = 2048
"""Points of a law ``q^w p^(1 - w)`` that samples are compared with."""


class TerminalBench(Workbench):
    """Makes the training loops; the ratio is learned once, in `prepare`."""

    config: Terminal

    def __init__(self, config: Terminal, data: ShiftedData):
        super().__init__(config, data)
        self._ratio: DensityRatio | None = None
        self._base_rows: np.ndarray | None = None
        self._laws = TemperedLaws(config.source, config.target) if config.domain == "toy2d" else None

    def prepare(
        self, folder: RunFolder, cache: Path, with_path_kl: bool = True
    ) -> tuple[Params, Evaluate, np.ndarray]:
        """As of any adaptation; then the base is sampled and the ratio learned, and what it is worth is logged."""
        base_params, evaluate, samples = super().prepare(folder, cache, with_path_kl)
        shape = (self.config.num_base_samples, *self.event_shape)
        num_steps = self.config.sampling_steps
        self._base_rows = samples_of_base(self.drift, base_params, shape, num_steps, BASE_SEED)
        self._ratio = ratio_of(self.config, self.data.target, self._base_rows)
        record_ratio(folder, self.config, self._ratio, self.data, self._base_rows, self._laws)
        return base_params, evaluate, samples

    def method(self, name: str) -> Method:
        """Objective, cooling and optimiser of a method."""
        if name not in TERMINAL_METHODS:
            return super().method(name)
        assert self._ratio is not None, "prepare comes first"
        return method_of(name, self.config, self.drift, self.path, self._ratio.log_ratio)

    def stream(self, name: str, seed: int, base_params: Params) -> Batches:
        """Training batches of a method."""
        rows = TERMINAL_METHODS[name].rows if name in TERMINAL_METHODS else "target"
        if rows == "target":
            return super().stream(name, seed, base_params)
        if rows == "noise":
            source = gft.pairing.standard_normal(self.event_shape)
            return gft.pairing.source_batches(source, batch_size=self.config.batch_size, seed=seed)
        assert self._base_rows is not None, "prepare comes first"
        return gft.pairing.batches(self._base_rows, batch_size=self.config.batch_size, seed=seed)

    def loop(self, folder: RunFolder, name: str, seed: int, base_params: Params) -> Loop:
        """The training loop of a method and seed, which logs what its weights or adjoints are like."""
        loop = super().loop(folder, name, seed, base_params)
        return loop._replace(
            diagnose=lambda stats: {**effective_share(stats), **means(stats)},
            check=functools.partial(check_adjoints, self.config.adjoint_limit),
        )

    def watch(self, folder: RunFolder, name: str, seed: int) -> Watch | None:
        """As of any adaptation; scores the distance to the law at which the terminal objective aims at this step.

        That of methods that cool by a schedule alone: others have no target weight of the step, or one that is always
        the same.
        """
        keep, laws = super().watch(folder, name, seed), self._laws
        cooling = self.method(name).cooling
        if laws is None or not self._is_scheduled(cooling):
            return keep

        def distance(step: int, samples: np.ndarray) -> dict[str, float]:
            temperature = cooling.temperature(cooling.init(), step)
            law = laws.draw(float(gft.cooling.target_weight(temperature)), NUM_LAW)
            kept = {} if keep is None else keep(step, samples)
            return {**kept, "end_law_energy_distance": gft.metrics.energy_distance(samples, law)}

        return distance

    def _is_scheduled(self, cooling: Cooling) -> bool:
        """Whether the temperature is a function of the step, and changes."""
        state = cooling.init()
        if jax.tree.leaves(state):
            return False
        return float(cooling.temperature(state, 0)) != float(cooling.temperature(state, self.config.steps))


def effective_share(stats: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Effective sample size of the batches as a share of their rows, the mean over the steps."""
    if "ratio_weight" not in stats:
        return {}
    return {"effective_share": float(np.mean(1 / (stats["ratio_weight"] * stats["inverse_ratio_weight"])))}
