"""Report cards of a finished run: quality, efficiency, diversity and retention of its methods on held-out data.

python -m experiments.evaluate runs/digits/001 --method plain
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gft_jax as gft
from experiments.card_figures import card_figure
from experiments.cards import write_card
from experiments.configs.images import Images
from experiments.configs.settings import Controls, Settings
from experiments.files import read_json
from experiments.images.judging import image_subject
from experiments.loop import Stopped
from experiments.report import write_report
from experiments.sample import SOLVERS, chosen_average
from experiments.subject import Subject, subject_of
from experiments.train import EXPERIMENTS
from gft_jax.evaluation import ReportCard
from gft_jax.loading import CheckpointName, Loaded, params_folder

SolverName = Literal["euler", "midpoint", "heun", "tsit5"]
ClassifierName = Literal["nearest-neighbours", "logistic"]
CLASSIFIERS = {
    "nearest-neighbours": KNeighborsClassifier(5),
    "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}
PICKED = "of all checkpoints this one has the lowest W2 to the held-out data, so it flatters what is measured on them"
OLD_DATA = "the old data are those that the base was trained on, not held-out ones"


@dataclass(frozen=True)
class Evaluate:
    """Judge the methods of a finished run; writes RUN/cards/METHOD/card.json, card.md and card.png, and makes the
    run's report again with the cards in it."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    method: str | None = None
    """One of the run's methods, or base; default all of its methods."""
    seed: int | None = None
    """One of the run's seeds; default its first."""
    averaged: bool = False
    """Judge the averaged parameters. By default those that the run scores: of images averaged, else raw."""
    raw: bool = False
    """Judge the raw parameters."""
    checkpoint: CheckpointName = "final"
    """Judge the parameters at the end of training, or those of the checkpoint of lowest W2. That one is picked with
    hindsight, on the held-out data that the card judges by."""
    num_samples: int | None = None
    """Number of samples, at least 12; default as many as are held out."""
    solver: SolverName | None = None
    """Solver of samples and paths, with equal steps; default that of the run's own evaluations."""
    num_steps: int | None = None
    """Its equal steps; default those of the run's own evaluations. Where these adapt, paths are looked at after so
    many equal intervals."""
    nfe_solvers: tuple[SolverName, ...] = ("euler", "midpoint")
    """Solvers of the curve of quality against evaluations."""
    nfe_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Its numbers of steps."""
    num_halves: int = 100
    """Halves of the samples behind each interval, at least 2."""
    classifier: ClassifierName | None = None
    """Classifier that is to tell samples from held-out data. None by default: each of its values trains five, and a
    card takes about 10 s longer by nearest-neighbours and 40 s by logistic."""
    noise_seed: int | None = None
    """Seed of noise, rows, halves and splits. By default 0; but samples of images start from the noise of the run's own
    evaluations."""


def main() -> int:
    """Makes the cards; returns the exit status."""
    config = tyro.cli(Evaluate, prog="python -m experiments.evaluate", description=__doc__)
    try:
        for folder, card in evaluate(config):
            print(gft.evaluation.markdown(card))
            print(f"card: {folder / 'card.md'}\n", flush=True)
        if (config.run / "report.html").is_file():
            print(f"report: {write_report(config.run)}")
    except (ValueError, OSError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate(config: Evaluate) -> Iterator[tuple[Path, ReportCard]]:
    """Makes and writes one card after the other; each with its folder.

    Raises:
        ValueError: if the run, its settings or the parameters cannot be read, its data are others than those that it
            was begun on, or a number is out of range.
    """
    is_best = config.checkpoint == "best"
    if config.method == "base" and (config.averaged or config.raw or is_best or config.seed is not None):
        raise ValueError(
            "--seed, --averaged, --raw and --checkpoint are for fine-tuned methods; the base has none of them"
        )
    _loaded(config, config.method)  # what is not there should be refused before the data are read
    base = gft.load(config.run, "base")
    settings = recorded_settings(config.run)
    is_images = isinstance(settings, Images)
    subject = image_subject(config.run, settings, base) if is_images else subject_of(settings, base)
    names = settings.methods if config.method is None else (config.method,)
    of_kind: dict[bool, Loaded] = {}
    for name in names:
        loaded = _loaded(config, name)
        alike = of_kind.setdefault(loaded.average is None, loaded)  # whose programs are compiled
        loaded = loaded._replace(drift=alike.drift, average=alike.average)
        card = judge(config, subject, loaded)
        seed = None if name == "base" else settings.seeds[0] if config.seed is None else config.seed
        kept = params_folder(config.run, name, seed, loaded.averaged and not is_best, config.checkpoint)
        folder = config.run / "cards" / kept.name
        facts = {
            "method": name,
            "seed": seed,
            "averaged": loaded.averaged,
            "checkpoint": config.checkpoint,
            "noise_seed": 0 if config.noise_seed is None and subject.source is None else config.noise_seed,
            "tolerance": subject.tolerance if config.solver is None else None,
            "classifier": config.classifier,
            **subject.facts,
        }
        if is_best:
            card = card._replace(notes=(*card.notes, PICKED))
        write_card(folder, card, facts, card_figure(card))
        yield folder, card


def _loaded(config: Evaluate, method: str | None) -> Loaded:
    averaged = chosen_average(config.averaged, config.raw)
    return gft.load(config.run, method, config.seed, averaged=averaged, checkpoint=config.checkpoint)


def judge(config: Evaluate, subject: Subject, loaded: Loaded) -> ReportCard:
    """The card of one method; with an average velocity, of its own velocity and by steps of the average."""
    data = subject.data
    few = len(data.target) < gft.evaluation.LEAST_SAMPLES
    num_samples = config.num_samples
    if num_samples is None and data.labels is not None:
        # Samples are told the classes of held-out images, so that their number must be known here.
        num_samples = min(len(data.held_out), (len(data.held_out) + len(data.fresh)) // 2)
    num_steps = subject.num_steps if config.num_steps is None else config.num_steps
    unread = not isinstance(data.target, np.ndarray)
    average = loaded.average if subject.averages else None
    card = gft.evaluation.report_card(
        subject.drift if average is None else loaded.drift,
        loaded.params,
        loaded.base_params,
        data.held_out,
        key=jax.random.key(0 if config.noise_seed is None else config.noise_seed),
        fresh=data.fresh,
        old_data=data.base,
        training_data=None if few or unread else data.target,
        feature_extractor=subject.features,
        classifier=None if config.classifier is None else CLASSIFIERS[config.classifier],
        num_samples=num_samples,
        source=subject.source if config.noise_seed is None else None,
        cond=None if num_samples is None else subject.labels(num_samples),
        solver=subject.solver if config.solver is None else SOLVERS[config.solver](),
        num_steps=num_steps,
        stepsize_controller=subject.controller if config.solver is None else None,
        nfe_solvers=[SOLVERS[name]() for name in config.nfe_solvers],
        nfe_steps=config.nfe_steps,
        path=subject.path,
        coupling=subject.coupling,
        score=subject.score,
        num_halves=config.num_halves,
        chunk_size=subject.rows_at_once,
        average=average,
    )
    too_few = (f"no distances to the training data, of which there are {len(data.target)}",) if few else ()
    unread_data = ("no distances to the training data, which lie in files",) if unread else ()
    old_data = () if data.base is None else (OLD_DATA,)
    notes = [note for note in card.notes if subject.no_path_kl is None or not note.startswith("no path KL")]
    why = () if subject.no_path_kl is None else (f"no path KL: {subject.no_path_kl}",)
    adaptive = ()
    if config.solver is None and subject.tolerance is not None:
        adaptive = (
            f"steps adapt to the tolerance {subject.tolerance:g}, as in the run, and paths are looked at after "
            f"{num_steps} equal intervals",
        )
    own = subject.own_scores(loaded.params)
    card = _in_calls(card, subject.calls)
    return card._replace(
        measures=(*card.measures, *own),
        notes=(*notes, *why, *subject.notes, *adaptive, *too_few, *unread_data, *old_data),
    )


def _in_calls(card: ReportCard, calls: int) -> ReportCard:
    """The card with evaluations counted in calls of the network."""
    curve = card.nfe_curve
    points = (point._replace(num_evaluations=calls * point.num_evaluations) for point in curve.points)
    measures = (each._replace(num_evaluations=calls * each.num_evaluations) for each in card.measures)
    return card._replace(measures=tuple(measures), nfe_curve=curve._replace(points=tuple(points)))


def recorded_settings(run: Path) -> Settings:
    """The settings that a run was started with.

    Raises:
        ValueError: if its config.json names another experiment, or settings that the program does not have.
    """
    path = run / "config.json"
    facts = read_json(path)
    experiment = EXPERIMENTS.get(facts.get("experiment", ""))
    if experiment is None:
        raise ValueError(
            f"{path} names the experiment {facts.get('experiment')!r}, whose held-out data are not known: there are "
            f"{', '.join(EXPERIMENTS)}"
        )

    def as_field(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    try:
        recorded: dict[str, Any] = {name: as_field(value) for name, value in facts["config"].items()}
        recorded["controls"] = Controls(**recorded["controls"])
        settings = experiment(**recorded)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the settings of this version: {error}") from error
    settings.check()
    return settings


if __name__ == "__main__":
    sys.exit(main())
