"""The pretrained flow of an experiment: trained once, then found again by what it depends on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen
from tqdm import tqdm

import gft_jax as gft
from experiments.configs.settings import RunSettings
from experiments.loop import Preempted, check_finite, found, keep, preemption
from experiments.methods import TimedPath
from experiments.run_folder import RunFolder
from gft_jax.checkpoints import fingerprint
from gft_jax.loading import describe_model, init_params, params_folder
from gft_jax.types import Drift, Params

SEED = 0
CHUNK = 50


def samples_of_base(
    drift: Drift, base_params: Params, shape: tuple[int, ...], num_steps: int, seed: int
) -> np.ndarray:
    """Samples of the base of this shape ``(num, *event)`` by Euler's method, always of the noise of the seed."""
    noise = jax.random.normal(jax.random.key(seed), shape)
    sample = jax.jit(lambda params, x: gft.sampling.sample_ode(drift, params, x, num_steps=num_steps).x)
    return np.asarray(sample(base_params, noise))


def base_of_run(
    config: RunSettings,
    folder: RunFolder,
    data: np.ndarray,
    module: linen.Module,
    drift: Drift,
    timed_path: TimedPath,
    cache: Path,
    two_time_methods: Sequence[str] = (),
) -> Params:
    """The run's own copy of the base, so that a resumed run goes on with it; made first where there is none.

    Also describes the network in the run folder, so that the run can be loaded; methods of two times are named there.
    """
    event_shape = data.shape[1:]
    if folder.is_writer:
        describe_model(folder.path, module, event_shape, two_time_methods=two_time_methods)
    own = params_folder(folder.path, "base")
    params = found(own, init_params(module, jax.random.key(SEED), event_shape))
    if params is None:
        params = pretrained_base(config, data, module, drift, timed_path, cache)
        keep(own, params)
    return params


def pretrained_base(
    config: RunSettings,
    data: np.ndarray,
    module: linen.Module,
    drift: Drift,
    timed_path: TimedPath,
    cache: Path,
) -> Params:
    """Parameters of the base flow, from the cache or trained now.

    The cache is keyed by everything that the parameters depend on: settings, architecture, and the data by content.
    """
    event_shape = data.shape[1:]
    depends_on = {
        "library": gft.__version__,
        "path": config.path,
        "steps": config.base_steps,
        "learning_rate": config.base_learning_rate,
        "batch_size": config.batch_size,
        "network": repr(module),
        "data": fingerprint(data),
        "seed": SEED,
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:12]
    folder = (cache / key).absolute()
    params = init_params(module, jax.random.key(SEED), event_shape)
    kept = found(folder, params)
    if kept is not None:
        print(f"base flow: found in {cache / key}")
        return kept

    objective = gft.objectives.flow_matching(drift, timed_path.path, time_sampler=timed_path.times)
    schedule = optax.cosine_decay_schedule(config.base_learning_rate, config.base_steps)
    runner = gft.parallel.single_device(gft.finetuner(objective, optax.adam(schedule), averaging=None))
    stream = gft.pairing.batches(data, batch_size=config.batch_size, seed=SEED)
    state = runner.init(jax.random.key(SEED), params=params)
    with tqdm(total=config.base_steps, desc="base flow", unit="step") as bar:
        for step in range(0, config.base_steps, CHUNK):
            count = min(CHUNK, config.base_steps - step)
            if preemption.requested():
                raise Preempted("while the base was pretrained, which begins again")
            state, infos = runner.step_many(state, None, stream.many(step, count))
            check_finite(infos, step, "the base flow", "start a run with a lower --base-learning-rate")
            bar.set_postfix(loss=f"{float(infos.loss.mean()):.2f}", refresh=False)
            bar.update(count)
    keep(folder, state.params)
    return state.params
