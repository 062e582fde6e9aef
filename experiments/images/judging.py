"""The report cards of a run on images: sampled and compared as the run's own evaluations are."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.configs.images import Images
from experiments.evaluator import NOISE_SEED, Evaluate
from experiments.images.bench import ImageBench
from experiments.images.own_base import own_base
from experiments.methods import coupling_of
from experiments.run_folder import RunFolder
from experiments.subject import Subject
from gft_jax.checkpoints import has_params
from gft_jax.drifts import as_score
from gft_jax.evaluation import Measure
from gft_jax.loading import Loaded
from gft_jax.types import Params

GROUP = "as the run scores"
"""Of the measures that the run's own evaluator makes."""
_BETTER = {
    "diversity": "as real",
    "training_energy_distance": "as real",
    "reached_weight": "",
    "label_accuracy": "higher",
}
_OF_SAMPLES = ("path_length", "retention")
"""Scores that are of the samples themselves also where distances are taken in features."""


def image_subject(run: Path, settings: Images, base: Loaded) -> Subject:
    """A run on images, of its own copy of the base. None trains an average velocity, which the base may have.

    Args:
        run: its folder.
        settings: of the run.
        base: its base.

    Raises:
        ValueError: if the data are not there, or not those that the run was begun on; says what differs.
    """
    task = settings.task(own_base(run))
    task.check_same_data(run)
    if settings.coupling == "semi-discrete" and not has_params(run / "coupling"):
        raise ValueError(
            f"{run / 'coupling'} is missing, the potentials of its coupling: continue the run (--resume)"
        )
    bench = ImageBench(settings, task)
    sampler, data, base_params = bench.sampler, bench.data, base.params
    coupling = coupling_of(settings.coupling, bench.drift, base_params)
    score, no_path_kl, notes = None, None, ()
    if sampler.calls > 1:
        no_path_kl = (
            "samples are guided, and a guided drift is no marginal velocity, from which the score follows"
        )
        notes = (
            f"samples are guided with scale {sampler.guidance:g}, as the run's own; NFE counts calls of the network, "
            "two for each evaluation of the guided drift; the distance to the base's drift is that of guided ones",
        )
    else:
        try:
            score = as_score(bench.drift, bench.path.path, coupling=coupling)
        except ValueError as error:
            no_path_kl = str(error).rstrip(".")
    noise = jax.random.normal(jax.random.key(NOISE_SEED), data.held_out.shape)

    def source(keys: Array) -> tuple[Array, None]:
        return jnp.asarray(noise)[: len(keys)], None

    return Subject(
        data=data,
        drift=sampler.drift(bench.drift, data.labels is not None),
        num_steps=settings.sampling_steps,
        path=bench.path.path if no_path_kl is None else None,
        coupling=coupling,
        solver=sampler.solver,
        controller=sampler.controller,
        tolerance=sampler.tolerance,
        source=source,
        score=score,
        features=settings.feature_extractor(),
        rows_at_once=settings.rows_at_once,
        calls=sampler.calls,
        no_path_kl=no_path_kl,
        notes=notes,
        facts={name: getattr(settings, name) for name in ("guidance", "precision", "features")},
        averages=False,
        own_scores=_own_scores(bench, bench.scores(RunFolder(run), base_params), base_params),
    )


def _own_scores(
    bench: ImageBench, evaluate: Evaluate, base_params: Params
) -> Callable[[Params], tuple[Measure, ...]]:
    """What the log of the run says of parameters, found again: by the same noise, steps, pairs and features."""
    of_base, floor = evaluate(base_params)[0], bench.floor()
    space = "data" if bench.config.features is None else "feature"

    def measures(params: Params) -> tuple[Measure, ...]:
        scores = evaluate(params)[0]
        of_sample = round(scores.pop("num_evaluations"))
        # The weight is asked at one time of each pair, without sampling.
        counts = {"one_step_w2": bench.sampler.calls, "reached_weight": 1}
        units = dict.fromkeys(_OF_SAMPLES, "data") | {"reached_weight": "", "label_accuracy": ""}
        return tuple(
            Measure(
                group=GROUP,
                name=name,
                value=value,
                low=None,
                high=None,
                base=of_base[name],
                floor=floor.get(name),
                num_evaluations=counts.get(name, of_sample),
                unit=units.get(name, space),
                better=_BETTER.get(name, "lower"),
            )
            for name, value in scores.items()
        )

    return measures
