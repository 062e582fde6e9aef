"""The report card: what fine-tuning has made of a flow, in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gft_jax.conditions import check_rows
from gft_jax.couplings import Coupling
from gft_jax.diffusions import Diffusion
from gft_jax.drifts.two_times import check_two_times
from gft_jax.evaluation.arguments import Samples, check_count, check_sets, check_source_rows, checked_number
from gft_jax.evaluation.contents import CardArrays, ReportCard
from gft_jax.evaluation.groups import Subject, diversity, efficiency, quality, retention
from gft_jax.evaluation.judge import Judge, RealSet
from gft_jax.evaluation.nfe import NfeCurve, checked_grids, curve_points
from gft_jax.evaluation.rollouts import path_kl_by_row, roll_out, squared_velocity_distances
from gft_jax.evaluation.solves import solve, solver_name
from gft_jax.metrics import extract_features
from gft_jax.metrics.resampling import generator
from gft_jax.pairing import Source, standard_normal
from gft_jax.paths import Path
from gft_jax.sampling import sample_average, time_grids
from gft_jax.sampling.row_keys import row_keys
from gft_jax.sampling.steps import evaluations_per_step
from gft_jax.types import Drift, TwoTimeDrift

_OF_AVERAGE = (
    "one step W2 is of one step of the average velocity, and the curve has points of it; all else is of the velocity "
    "u(t, t, x)"
)


def report_card(
    drift: Drift,
    params: Any,
    base_params: Any,
    held_out: Samples,
    *,
    key: Key[Array, ""],
    fresh: Samples | None = None,
    old_data: Samples | None = None,
    training_data: Samples | None = None,
    feature_extractor: Callable[[Any], Any] | None = None,
    classifier: Any = None,
    num_samples: int | None = None,
    source: Source | None = None,
    cond: Any = None,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    num_steps: int = 100,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    nfe_solvers: Sequence[diffrax.AbstractSolver] = (diffrax.Euler(), diffrax.Midpoint()),
    nfe_steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    path: Path | None = None,
    coupling: Coupling | None = None,
    score: Drift | None = None,
    diffusion: Diffusion | None = None,
    level: float = 0.95,
    num_halves: int = 100,
    num_floors: int = 10,
    chunk_size: int | None = None,
    average: TwoTimeDrift | None = None,
) -> ReportCard:
    """How good a fine-tuned flow is, what its samples cost, how varied they are, and what is left of the base.

    * *Quality*, distances between samples and held-out data: W2, energy distance, sliced W2, squared MMD (Gaussian
      kernel, bandwidth the median distance of the held-out samples), Sinkhorn divergence (epsilon 0.05 of the mean
      squared distance of two held-out samples, without interval); Frechet and kernel distance, with an extractor of
      features, otherwise of the samples themselves (not FID and KID; the Frechet distance where there are more of them
      than entries in one); with a classifier its accuracy; W2 and energy distance to the training data: below their
      floor, where samples repeat what the drift was trained on.
    * *Efficiency*: mean path length, kinetic energy, straightness, normalised path energy (its interval for the W2
      between source and data as measured), rank correlation of velocity variance and time (`spearman`: -1 where paths
      bend early, +1 late; nothing where they are straight but for rounding), W2 of samples by one Euler step (of the
      average velocity where there is one, as a note then says), and the curve of quality against evaluations.
    * *Diversity*: mean pairwise distance, Vendi score (likewise a Gaussian kernel), precision, recall, density and
      coverage by five neighbours. With an extractor, all but the first are of features.
    * *Retention*: root mean squared distance between drift and base drift on the base's own sampling paths (over at
      most 20 flow times, evenly spread); W2 and energy distance of samples to old data; path KL, the relative entropy
      ``KL(P || P_base)`` of the SDEs of drift and base with one noise level g, see `gft_jax.metrics.path_kl`. For an
      affine path with an independent coupling, the score follows from the velocity; otherwise it is one that was
      trained (`gft_jax.objectives.velocity_and_score`), or the card has a note with the reason in its place. For
      drifts that are not marginal velocities of that path (an unfinished cooling, say) it is the entropy of the
      processes so defined, whose marginals are not those of the ODE.

    Samples of drift and base start at the same noise. Every distance is of ``num`` against ``num`` samples (fewer, if
    the training or old data are few), and stands beside the interval and the floor at these numbers. What an interval
    covers is the expectation of the metric *at these numbers of samples*: for metrics with a bias compare it with the
    floor, not with zero (`gft_jax.metrics` has the bias of each). Intervals are over draws of samples and data, not
    over training runs, and end where the metric's range does. Where halves of the samples are too few for intervals to
    cover, there is none; see `gft_jax.evaluation.Measure`.

    Cost: two rollouts with all their states in memory, a compilation for each point of the curve, and every metric
    ``2 + num_halves + num_floors`` times: on two cores about 20 s for 500 samples in the plane.

    Args:
        drift: the velocity field.
        params: parameters of the fine-tuned drift.
        base_params: those of the pretrained one.
        held_out: real samples ``[num_held_out, *event]`` that neither was trained on.
        key: draws noise, rows, halves and splits.
        fresh: further real samples of the same law, for floors. Without them a floor is between halves of the
            held-out samples, and num is at most half of their number.
        old_data: samples of the law that the base was trained on, at least 24.
        training_data: what the drift was fine-tuned on, at least 12.
        feature_extractor: see `gft_jax.metrics.extract_features`.
        classifier: an estimator of scikit-learn's form for `gft_jax.metrics.classifier_accuracy`, which is slow: each
            of its values trains five. None leaves it out.
        num_samples: num, from 12 to the number of held-out samples and half of all real ones; None for the largest
            up to 1000.
        source: draws the source rows; None for N(0, I).
        cond: conditions of the samples, a pytree of ``[num, ...]``, or None.
        solver: of samples and paths.
        num_steps: its equal steps, >= 1.
        stepsize_controller: an adaptive one for the steps of the solver instead, which then adapt to the rows of a
            chunk; num_steps is the number of equal intervals after which paths are looked at, between which they
            count as straight, and of the steps of the path KL.
        nfe_solvers: of the curve.
        nfe_steps: of the curve.
        path: affine path that drift and base were trained on, for the path KL; None leaves it out, unless there is a
            score.
        coupling: what paired source and data in training, None for the rows as drawn.
        score: of the path KL, a head of its own in the form of a drift, with the parameters of drift and base; None
            to derive it from the velocity, on that path and under that coupling.
        diffusion: noise level of the path KL; None for the memoryless one of the path. The number depends on it.
        level: probability of covering, in (0, 1).
        num_halves: of each interval, >= 2.
        num_floors: pairs of real sets in each floor, >= 1.
        chunk_size: of all that evaluates a drift, see `gft_jax.sampling.sample_ode`.
        average: the average velocity whose velocity ``drift`` is (`gft_jax.drifts.instantaneous`), of the same
            parameters: it has points of its own in the curve, and the one-step samples are its. All else is of
            ``drift``. None for none.

    Raises:
        ValueError: for numbers out of range, too few data (how many there must be), unlike events, samples that are
            not finite; an average velocity without a second time; an extractor that
            `gft_jax.metrics.extract_features` refuses; samples of drift or base that are not finite, with their
            number. Solves of the curve that fail are points with a ``failure``; an SDE that diverges is a note.
    """
    held = np.asarray(held_out)
    check_sets(held, fresh, old_data, training_data)
    pool = held if fresh is None else np.concatenate([held, np.asarray(fresh)])
    num = checked_number(num_samples, len(held), len(pool))
    for name, count, least in (
        ("num_steps", num_steps, 1),
        ("num_halves", num_halves, 2),
        ("num_floors", num_floors, 1),
    ):
        check_count(name, count, least)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    evaluations_per_step(solver)
    if average is not None:
        check_two_times(average)
    grids = checked_grids(nfe_solvers, nfe_steps, time_grids.uniform)
    check_rows("cond", cond, num)
    key_noise, key_rows, key_halves, key_floors, key_quality, key_sde = jax.random.split(key, 6)
    random = generator(key_rows)

    def drawn(rows: Samples | None, count: int) -> np.ndarray | None:
        return None if rows is None else np.asarray(rows)[random.permutation(len(rows))[:count]]

    index = random.permutation(len(held))[:num]
    real, training = RealSet(held[index], pool), drawn(training_data, num)
    old = None if old_data is None else drawn(old_data, min(num, len(old_data) // 2))
    features: Callable[[Any], np.ndarray] = np.asarray
    if feature_extractor is not None:
        features = partial(extract_features, feature_extractor)
    pool_features = features(pool)  # an extractor that fails should fail now

    draw = standard_normal(held.shape[1:], jnp.promote_types(jnp.asarray(held[:0]).dtype, jnp.float32))
    x0 = (draw if source is None else source)(row_keys(key_noise, num))[0]
    check_source_rows(x0, num, held)
    student, base = (
        roll_out(name, drift, weights, x0, cond, solver, num_steps, chunk_size, stepsize_controller)
        for name, weights in (("the fine-tuned drift", params), ("the base", base_params))
    )
    if average is None:
        one_step = solve(drift, params, x0, cond, time_grids.uniform(1), diffrax.Euler(), chunk_size).x
    else:
        one_step = sample_average(average, params, x0, cond=cond, chunk_size=chunk_size).x
    points = curve_points(drift, params, x0, real.reference, nfe_solvers, grids, cond, chunk_size, average)
    times, squares = squared_velocity_distances(drift, params, base_params, base, cond, chunk_size)

    judge, notes = Judge(key_halves, key_floors, level, num_halves, num_floors), []
    if average is not None:
        notes.append(_OF_AVERAGE)
    subject = Subject(
        student=student,
        base=base,
        real=real,
        student_features=features(student.x),
        base_features=features(base.x),
        real_features=RealSet(pool_features[index], pool_features),
        has_features=feature_extractor is not None,
    )
    table = [
        *quality(judge, subject, key_quality, classifier, training, notes),
        *efficiency(judge, subject, np.asarray(x0), np.asarray(one_step), notes),
        *diversity(judge, subject, notes),
        *retention(judge, subject, squares, None if old is None else RealSet(old, np.asarray(old_data))),
    ]
    if path is not None and source is not None and score is None:
        notes.append(
            "no path KL: the score follows from the velocity for a source N(0, I), and another was given"
        )
    else:
        try:
            entropies, num_evaluations = path_kl_by_row(
                drift,
                score,
                params,
                base_params,
                x0,
                key_sde,
                cond,
                path,
                coupling,
                diffusion,
                num_steps,
                chunk_size,
            )
        except ValueError as error:
            notes.append("no path KL: " + str(error).rstrip("."))
        else:
            table.append(judge.of_rows("retention", "path_kl", entropies, None, num_evaluations, "nats"))

    arrays = CardArrays(
        samples=student.x,
        base_samples=base.x,
        real=real.reference,
        times=student.times,
        trajectory=student.trajectory,
        base_trajectory=base.trajectory,
        velocity_variance=student.velocity_variance,
        base_velocity_variance=base.velocity_variance,
        compared_times=times,
        velocity_distance=np.sqrt(squares.mean(axis=1)),
    )
    floors = {row.name: row.floor for row in table if row.floor is not None}
    curve = NfeCurve(points, floors["w2"], floors["energy_distance"], num)
    return ReportCard(
        tuple(table),
        curve,
        tuple(notes),
        arrays,
        num,
        solver_name(solver),
        num_steps if stepsize_controller is None else None,
        level,
        num_halves,
        num_floors,
    )
