"""The few_steps experiment: one base, and a training run for every method and seed, each after those it continues."""

from pathlib import Path

import jax
import numpy as np

from experiments.configs.few_steps import FewSteps
from experiments.devices import check_devices
from experiments.few_steps.bench import FewStepsBench
from experiments.few_steps.methods import FEW_STEP_METHODS
from experiments.few_steps.scores import EVALUATIONS, FEW_STEP_SAMPLES
from experiments.files import write_arrays
from experiments.planar import NUM_POINTS, is_planar, write_paths
from experiments.run_folder import RunFolder, open_run
from gft_jax.types import Params

NUM_IMAGES = 64


def compare_few_steps(config: FewSteps, root: Path) -> RunFolder:
    """Adapts the base by every method and seed, and samples the results in few evaluations.

    Args:
        config: settings, checked.
        root: where run folders and bases are.

    Raises:
        ValueError: for reflow in several processes.
    """
    check_devices(config)
    if jax.process_count() > 1 and any(FEW_STEP_METHODS[name].after for name in config.stages):
        raise ValueError(
            f"the pairs of reflow are made by one process, and this run has {jax.process_count()}: leave reflow out of "
            "--methods, or run it in a single process, whose devices may be many"
        )
    facts = {"methods": list(config.stages), "seeds": list(config.seeds), **config.facts()}
    folder = open_run(config, root, facts | {"num_evaluations": config.num_evaluations})
    print(f"run folder: {folder.path}")
    bench = FewStepsBench(config, config.data())
    base_params, base_samples = bench.prepare_all(folder, root / "base")
    first: dict[str, Params] = {}
    for seed in config.seeds:
        ends: dict[str, Params] = {}
        for name in config.stages:
            ends[name] = _trained(bench, folder, name, seed, base_params, ends)
        first = first or ends
    if folder.is_writer:
        _write_samples(folder, bench, base_params, base_samples, first)
    return folder


def _trained(
    bench: FewStepsBench,
    folder: RunFolder,
    name: str,
    seed: int,
    base_params: Params,
    ends: dict[str, Params],
) -> Params:
    """Final parameters of a method and seed, those of the methods before it given."""
    after, start = FEW_STEP_METHODS[name].after, None
    if after is not None:
        start = ends[after]
        bench.make_pairs(folder, name, seed, start)
    loop = bench.loop(folder, name, seed, base_params)
    evaluate = bench.evaluate(name, base_params)
    return loop.train(bench.start(name, base_params), start, evaluate, bench.watch(folder, name, seed))


def _write_samples(
    folder: RunFolder,
    bench: FewStepsBench,
    base_params: Params,
    base_samples: np.ndarray,
    ends: dict[str, Params],
) -> None:
    """Samples of the first seed: of the most evaluations, of each number of them, and in the plane the way there."""
    planar = is_planar(bench.event_shape)
    num = NUM_POINTS if planar else NUM_IMAGES
    finals = {"base": ("plain", base_params), **{name: (name, params) for name, params in ends.items()}}
    few = {}
    for name, (kind, params) in finals.items():
        samples = bench.sampler(kind)(params)
        few[name] = np.stack([samples[count][:num] for count in EVALUATIONS])
    write_arrays(folder.path / FEW_STEP_SAMPLES, few)
    most = {name: samples[-1] for name, samples in few.items() if name != "base"}
    real = bench.data.held_out[:num]
    write_arrays(folder.path / "samples.npz", {"real": real, "base": base_samples[:num], **most})
    if planar:
        flows = {name: (bench.velocity(kind), params) for name, (kind, params) in finals.items()}
        write_paths(folder.path, flows, bench.config.sampling_steps)
