"""One run: the base of a domain, fine-tuned gradually with a coupling, and measured on held-out data."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from experiments.base_flow import pretrained_base
from experiments.configs.digits import Digits
from experiments.configs.domains import Domain
from experiments.configs.settings import FineTuningCouplingName, Settings
from experiments.configs.toy2d import Toy2d
from experiments.couplings.comparison import Outcome
from experiments.evaluator import floor
from experiments.loop import check_finite
from experiments.methods import coupling_of
from experiments.workbench import Workbench
from gft_jax.couplings import require_converged
from gft_jax.pairing import Batches
from gft_jax.types import Params

CONFIGS: dict[Domain, Settings] = {"toy2d": Toy2d(), "digits": Digits()}
"""Data, network, base and rates of each domain: those of the training program."""
METHOD = "gradual-linear"
LARGE_PAIRING = 1024
EULER_STEPS = 100
FEW_STEPS = (1, 2, 4, 8)
CHUNK = 50
NUM_PAIRINGS = 4
"""Pairings whose cost is averaged, of the first steps."""
NUM_RETENTION_TIMES = 10
_NOISE_SEED, _FIT_SEED = 20_261_122, 20_261_123

StreamName = Literal[FineTuningCouplingName, "exact-of-1024", "semi-discrete"]
Streams = Callable[[Workbench, Params], Callable[[int], Batches]]
"""``(workbench, parameters of the base)`` -> seed -> training batches, all seeds by one compiled program."""


def _paired(name: FineTuningCouplingName, pair_size: int | None = None) -> Streams:
    def streams(bench: Workbench, base_params: Params) -> Callable[[int], Batches]:
        coupling = coupling_of(name, bench.drift, base_params)
        rows, size = bench.data.target, bench.config.batch_size
        return lambda seed: gft.pairing.batches(
            rows, batch_size=size, seed=seed, coupling=coupling, pair_size=pair_size
        )

    return streams


def _semi_discrete(bench: Workbench, base_params: Params) -> Callable[[int], Batches]:
    rows, size = bench.data.target, bench.config.batch_size
    source = gft.pairing.standard_normal(bench.event_shape)
    potentials = gft.couplings.fit_semidiscrete(jax.random.key(_FIT_SEED), rows, source)
    require_converged(potentials)
    return lambda seed: gft.pairing.chosen_batches(rows, potentials, batch_size=size, seed=seed)


STREAMS: dict[StreamName, Streams] = {
    "independent": _paired("independent"),
    "exact": _paired("exact"),
    "exact-of-1024": _paired("exact", LARGE_PAIRING),
    "semi-discrete": _semi_discrete,
    "sinkhorn": _paired("sinkhorn"),
    "one-to-one": _paired("one-to-one"),
    "unbalanced": _paired("unbalanced"),
    "base-exact": _paired("base-exact"),
}
"""What is compared, in the order of table and figure."""


class FineTuning:
    """The runs of one domain and length, which share base, test noise and compiled programs."""

    def __init__(self, domain: Domain, num_steps: int, cache: Path):
        # The cooling is a part of the steps: with those of the training program a run of fewer would not reach the end.
        config = dataclasses.replace(CONFIGS[domain], steps=num_steps)
        self.domain, self.data = domain, config.data()
        self.bench = Workbench(config, self.data)
        drift, held_out = self.bench.drift, self.data.held_out
        self.base_params = pretrained_base(
            config, self.data.base, self.bench.module, drift, self.bench.path, cache
        )
        noise = jax.random.normal(jax.random.key(_NOISE_SEED), held_out.shape)
        self._streams = functools.cache(lambda name: STREAMS[name](self.bench, self.base_params))
        self._w2_of_noise = gft.metrics.w2(noise, held_out)

        @jax.jit
        def sample(params: Params) -> Any:
            few = [gft.sampling.sample_ode(drift, params, noise, num_steps=num).x for num in FEW_STEPS]
            whole = gft.sampling.sample_ode(drift, params, noise, num_steps=EULER_STEPS, save_steps=True)
            return few, whole.trajectory, whole.times

        _, trajectory, times = sample(self.base_params)
        index = np.linspace(0, EULER_STEPS - 1, NUM_RETENTION_TIMES).astype(int)
        x = trajectory[index].reshape(-1, *noise.shape[1:])
        t = jnp.repeat(times[index], len(noise))
        base_velocity = jax.jit(drift)(self.base_params, t, x, None)

        @jax.jit
        def distances(params: Params, retained: Any, base_end: jax.Array, end: jax.Array) -> Any:
            t, x, velocity = retained
            to_drift = gft.metrics.velocity_distance(drift, params, velocity, t, x)
            return to_drift, jnp.sqrt(jnp.mean(jnp.sum((end - base_end).reshape(len(end), -1) ** 2, axis=1)))

        self._sample = sample
        self._distances = lambda params, end: distances(params, (t, x, base_velocity), trajectory[-1], end)

    def base(self) -> Outcome:
        """Numbers of the base itself, and the floors: of as many real samples, ``floor_w2`` and so on."""
        floors = {f"floor_{name}": value for name, value in floor(self.data).items()}
        return Outcome(self._measured(self.base_params) | floors, {})

    def run(self, name: StreamName, seed: int) -> Outcome:
        """Numbers after fine-tuning.

        Raises:
            ValueError: if one of the first pairings does not converge.
            Stopped: if loss or gradient is not finite.
        """
        try:
            stream = self._streams(name)(seed)
            costs = [float(require_converged(stream.pairing(step)).cost) for step in range(NUM_PAIRINGS)]
        except ValueError as error:
            raise ValueError(f"the coupling {name} on {self.domain}: {error}") from error
        runner = self.bench.runner(METHOD)
        state = runner.init(jax.random.key(seed), self.base_params)
        num_steps = self.bench.config.steps
        for step in range(0, num_steps, CHUNK):
            batches = stream.many(step, min(CHUNK, num_steps - step))
            state, infos = runner.step_many(state, self.base_params, batches)
            check_finite(infos, step, f"{self.domain}, {name}, seed {seed}", "the base has another scale")
        return Outcome({**self._measured(state.params), "pair_cost": float(np.mean(costs))}, {})

    def _measured(self, params: Params) -> dict[str, float]:
        few, trajectory, times = self._sample(params)
        end = trajectory[-1]
        to_drift, to_samples = self._distances(params, end)
        ends = dict(zip((*FEW_STEPS, EULER_STEPS), (*few, end), strict=True))
        energies = gft.metrics.kinetic_energy(trajectory, times)
        numbers = {f"w2_{num}": gft.metrics.w2(x, self.data.held_out) for num, x in ends.items()}
        numbers |= {
            "path_length": jnp.mean(gft.metrics.path_length(trajectory)),
            "energy_over_squared_w2": jnp.mean(energies) / self._w2_of_noise**2,
            "normalised_path_energy": gft.metrics.normalised_path_energy(energies, self._w2_of_noise),
            "energy_distance": gft.metrics.energy_distance(end, self.data.held_out),
            "to_base_drift": to_drift,
            "to_base_samples": to_samples,
        }
        return {key: float(value) for key, value in numbers.items()}
