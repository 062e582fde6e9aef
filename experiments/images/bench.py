"""What all methods and seeds of a run on images share."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft
from experiments.configs.images import Images
from experiments.configs.settings import FineTuningCouplingName
from experiments.devices import fuses_attention, runner_of
from experiments.evaluator import NOISE_SEED, Evaluate
from experiments.files import read_json
from experiments.images.evaluator import NUM_PAIRS, Judged, Sampler, by_parts, evaluator, floor, judged
from experiments.images.networks import Pretrained
from experiments.images.task import ImageTask
from experiments.loop import Loop, Watch, found, keep
from experiments.methods import Method
from experiments.planar import snapshot_keeper
from experiments.run_folder import RunFolder
from experiments.semi_discrete import potentials_of_run
from experiments.workbench import REPLAY_SEED, Workbench
from gft_jax.checkpoints import fingerprint
from gft_jax.couplings import Coupling
from gft_jax.loading import describe_model, init_params, params_folder
from gft_jax.pairing import Batches
from gft_jax.parallel import Runner
from gft_jax.types import Params

NEW_SEED = 0
"""Of the random parameters that a pretraining run calls its base."""


class ImageBench(Workbench):
    """Makes the training loops; labels, augmentation, averages and samples are those of images."""

    config: Images

    def __init__(self, config: Images, task: ImageTask):
        super().__init__(config, task.read(), task.module)
        self.task = task
        half = config.precision == "bfloat16"
        if config.fused_attention and half and fuses_attention(task.module, jax.local_devices()[0]):
            # The module that is kept with the run stays without it, which has no forward-mode derivative.
            self.drift = gft.drifts.from_linen(task.module.clone(fused_attention=True))
        if task.lora is not None:
            self.drift = task.lora.on_activations(self.drift)
        if half:
            self.drift = gft.drifts.in_precision(self.drift)
        self.sampler = config.sampler

    def method(self, name: str) -> Method:
        """Objective, cooling and optimiser of a method; the gradient is clipped."""
        method = super().method(name)
        if self.config.clip is None:
            return method
        clipped = optax.chain(optax.clip_by_global_norm(self.config.clip), method.optimizer)
        return method._replace(optimizer=clipped)

    def runner(self, name: str) -> Runner:
        """The step of a method, compiled once for all seeds."""
        if name not in self._runners:
            method = self.method(name)
            tuner = gft.finetuner(
                method.objective,
                method.optimizer,
                method.cooling,
                adapter=None if self.task.lora is None else self.task.lora.adapter,
                averaging=self.config.averaging,
                num_microbatches=self.config.num_microbatches,
            )
            self._runners[name] = runner_of(self.config, tuner, self.module)
        return self._runners[name]

    def prepare(
        self, folder: RunFolder, cache: Path, with_path_kl: bool = True
    ) -> tuple[Params, Evaluate, np.ndarray]:
        """Base parameters, the scores, and samples of the base; logs the scores of the base and of real data.

        There is no path KL: it takes many paths of an SDE.

        Raises:
            ValueError: if the run was begun with another base, or the base cannot be read.
        """
        first = self.config.seeds[0]
        base_params = self.base(folder, cache)
        evaluate = self.scores(folder, base_params)
        folder.log_once({"kind": "floor", "seed": first, **self.floor()})
        scores, samples = evaluate(base_params)
        folder.log_once({"kind": "evaluation", "method": "base", "seed": first, "step": 0, **scores})
        if self.task.lora is None:
            return base_params, evaluate, samples
        apply = self.task.lora.adapter.apply
        return base_params, lambda adapters: evaluate(apply(adapters, base_params)), samples

    def scores(self, folder: RunFolder, base_params: Params) -> Evaluate:
        """Scores of parameters of the drift, always from the same noise and on the same pairs."""
        if self.config.coupling == "semi-discrete":
            self._potentials = potentials_of_run(folder, self.data.target, self.config.seeds[0])
        pairs = self._pairs(base_params)
        return evaluator(self.drift, base_params, self.data, self.path, self.sampler, pairs, self.judged)

    def floor(self) -> dict[str, float]:
        """Scores of real samples."""
        return floor(self.data, self.judged)

    @functools.cached_property
    def judged(self) -> Judged:
        """By what samples are compared with data."""
        return judged(self.data, self.config.feature_extractor())

    def base(self, folder: RunFolder, cache: Path) -> Params:
        """The run's own copy of the base, so that a resumed run goes on with it; made first where there is none."""
        own = params_folder(folder.path, "base")
        new = init_params(self.module, jax.random.key(NEW_SEED), self.event_shape)
        params = found(own, new)
        if params is not None:
            return params
        base = self.config.pretrained()
        params = new if base is None else self._copied(base, folder)
        if folder.is_writer:
            describe_model(folder.path, self.module, self.event_shape, self.task.lora)
        keep(own, params)
        return params

    def _copied(self, base: Pretrained, folder: RunFolder) -> Params:
        """Parameters of the base that --base names; the same as before where they are copied again."""
        loaded = gft.load(base.folder, base.method)
        params = loaded.params
        if loaded.lora is not None and base.method != "base":
            params = loaded.lora.merge(*loaded.params)
        if getattr(self.module, "scan", False) and not getattr(base.module, "scan", False):
            params = gft.networks.stacked(params)
        here = {"base_fingerprint": fingerprint(params)}
        begun = read_json(folder.path / "config.json").get("base_fingerprint")
        if begun not in (None, here["base_fingerprint"]):
            raise ValueError(
                f"{folder.path} was begun with another base than there is in {base.folder} now, and its copy is lost: "
                "restore one of the two, or start another run"
            )
        folder.add_facts(here)
        return params

    def _pairs(self, base_params: Params) -> gft.Batch:
        """Rows paired as in training, of the first batches of a stream of its own."""
        config = self.config
        stream = self._batches(config.batch_size, NOISE_SEED, base_params, config.coupling)
        num = min(NUM_PAIRS, len(self.data.target))
        drawn = [stream.batch(step) for step in range(-(-num // config.batch_size))]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num], *drawn)

    def _batches(
        self, batch_size: int, seed: int, base_params: Params, coupling: FineTuningCouplingName
    ) -> Batches:
        config, labels, x1 = self.config, self.data.labels, self.data.target
        if coupling == "semi-discrete":
            assert self._potentials is not None, "the scores come first"
            return gft.pairing.chosen_batches(x1, self._potentials, batch_size=batch_size, seed=seed)
        conditions = {}
        count = self.task.num_classes
        if labels is not None and count is not None:
            conditions = {"cond": labels.target, "num_classes": count}
            if config.label_dropout > 0:
                null = np.int32(count)
                conditions |= {"cond_dropout": config.label_dropout, "null_cond": null}
        is_coupled = coupling != "independent"
        return gft.pairing.batches(
            x1,
            batch_size=batch_size,
            seed=seed,
            coupling=self._coupling(base_params, coupling) if is_coupled else None,
            pair_size=batch_size * config.coupled_batches if is_coupled else None,
            augment=gft.data.horizontal_flip() if config.flip else None,
            **conditions,
        )

    def _coupling(self, base_params: Params, name: FineTuningCouplingName) -> Coupling:
        """That of the name; with classes, pairs within each class alone."""
        coupling: Any = super()._coupling(base_params, name)
        if self.data.labels is None or name == "independent":
            return coupling
        return gft.couplings.respecting_labels(coupling)

    def _replay(self, batch_size: int, seed: int, base_params: Params) -> Batches:
        """Samples of the base for rehearsal, of classes at random, always the same ones."""
        num, count = self.config.controls.num_replay, self.task.num_classes
        noise = jax.random.normal(jax.random.key(REPLAY_SEED), (num, *self.event_shape))
        labels = None
        if count is not None:
            labels = np.random.default_rng(REPLAY_SEED).integers(count, size=num).astype(np.int32)
        plain = Sampler(self.sampler.num_steps)
        draw = jax.jit(lambda noise, labels: plain.sample(self.drift, base_params, noise, labels).x)
        samples = by_parts(draw, self.sampler.rows_at_once, noise, labels)
        return gft.pairing.batches(samples, batch_size=batch_size, seed=seed, cond=labels)

    def watch(self, folder: RunFolder, name: str, seed: int) -> Watch | None:
        """What sees the evaluations of a method and seed: the keeper of samples by step, of the first seed."""
        is_first = seed == self.config.seeds[0]
        return snapshot_keeper(folder.path, name) if is_first and folder.is_writer else None

    def loop(self, folder: RunFolder, name: str, seed: int, base_params: Params) -> Loop:
        """The training loop of a method and seed."""
        return super().loop(folder, name, seed, base_params)._replace(scores_average=not self.config.raw)
