"""The report card and the curve of quality against evaluations, on flows from N(0, I) to normal laws."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import normal
from sklearn.naive_bayes import GaussianNB

import gft_jax as gft
from gft_jax.evaluation import NfePoint, markdown, nfe_curve, report_card
from gft_jax.evaluation.judge import Comparison, Judge, RealSet

TARGET = {"mean": jnp.array([2.0, -1.0]), "sd": jnp.array(0.5)}
BASE = {"mean": jnp.array([0.0, 0.5]), "sd": jnp.array(1.0)}
LEVEL = 0.6
PATH = gft.paths.linear()
DIFFUSION = gft.diffusions.constant(LEVEL)
NUM_STEPS = 100
EULER, MIDPOINT = diffrax.Euler(), diffrax.Midpoint()


def slope_and_variance(t, sd):
    """Of the velocity ``m + slope (x - t m)``, and of x_t along each axis."""
    variance = (1 - t) ** 2 + (t * sd) ** 2
    return (t * sd**2 - (1 - t)) / variance, variance


def drift(law, t, x, cond=None):
    """The velocity of the linear path from N(0, I) to N(mean, sd^2 I); its parameters are that law."""
    t = t[:, None]
    slope, _ = slope_and_variance(t, law["sd"])
    return law["mean"] + slope * (x - t * law["mean"])


def exact_score(law, t, x, cond=None):
    """Of that path, by itself."""
    t = t[:, None]
    return (t * law["mean"] - x) / slope_and_variance(t, law["sd"])[1]


def draw(law, num, seed):
    return np.asarray(law["mean"] + law["sd"] * normal(num, 2, seed=seed), np.float32)


def squares(x):
    """Features of samples in the plane."""
    return np.concatenate([x, np.square(x)], axis=1)


HELD_OUT, OLD = draw(TARGET, 400, seed=1), draw(BASE, 400, seed=2)
SMALL = {"key": jax.random.key(0), "num_steps": NUM_STEPS, "nfe_solvers": (EULER,), "nfe_steps": (1,)}


@pytest.fixture(scope="module")
def card():
    """Of a perfect drift."""
    return report_card(
        drift,
        TARGET,
        BASE,
        HELD_OUT,
        key=jax.random.key(0),
        old_data=OLD,
        training_data=draw(TARGET, 60, seed=3),
        feature_extractor=squares,
        num_steps=NUM_STEPS,
        nfe_solvers=(EULER, MIDPOINT),
        nfe_steps=(1, 4),
        path=PATH,
        diffusion=DIFFUSION,
        num_halves=50,
    )


# The card


def standard_error(measure):
    """Of an interval by 50 halves, of which one end may be that of the metric's range."""
    return max(measure.high - measure.value, measure.value - measure.low) / 2.01


DISTANCES = ("w2", "energy_distance", "sliced_w2", "squared_mmd", "frechet_distance", "kernel_distance")
VARIETY = ("mean_pairwise_distance", "density", "coverage")


@pytest.mark.parametrize("name", [*DISTANCES, *VARIETY])
def test_a_perfect_drift_is_at_its_floor_and_the_base_is_not(card, name):
    measure = card.measure(name)
    error = standard_error(measure)
    # The floor, from twice as many real samples, scatters by about 0.7 of this error.
    assert abs(measure.value - measure.floor) < 4 * error < abs(measure.base - measure.floor)
    if name in DISTANCES:
        assert measure.low < measure.floor < measure.high


def test_values_are_those_of_the_metrics_on_the_samples_of_the_card(card):
    samples, base, real = card.arrays.samples, card.arrays.base_samples, card.arrays.real
    assert card.num_samples == len(samples) == len(real) == 200
    assert {row.tobytes() for row in real} <= {row.tobytes() for row in HELD_OUT}
    for name in ("w2", "energy_distance"):
        metric, measure = getattr(gft.metrics, name), card.measure(name)
        assert (measure.value, measure.base) == (metric(samples, real), metric(base, real))
    expected = gft.metrics.frechet_distance(squares(samples), squares(real))
    assert card.measure("frechet_distance").value == expected
    assert card.measure("coverage").value == gft.metrics.prdc(squares(samples), squares(real)).coverage
    kernel = gft.metrics.gaussian_kernel(gft.metrics.median_distance(squares(real)))
    assert card.measure("vendi_score").value == gft.metrics.vendi_score(squares(samples), kernel)
    kernel = gft.metrics.gaussian_kernel(gft.metrics.median_distance(real))
    assert card.measure("squared_mmd").base == gft.metrics.squared_mmd(base, real, kernel)
    assert card.measure("mean_pairwise_distance").base == gft.metrics.mean_pairwise_distance(base)
    length = gft.metrics.path_length(card.arrays.trajectory).mean()
    assert card.measure("path_length").value == pytest.approx(float(length), rel=1e-5)
    for prefix, end in (("", 2), ("base_", 5)):
        path, times = getattr(card.arrays, f"{prefix}trajectory"), card.arrays.times
        expected = np.mean(np.sum(np.diff(path, axis=0) ** 2, axis=(0, 2))) * NUM_STEPS
        assert card.measure("kinetic_energy")[end] == pytest.approx(float(expected), rel=1e-5)
        trend = gft.metrics.spearman(times[1:], gft.metrics.velocity_variance(path, times))
        assert card.measure("velocity_variance_spearman")[end] == pytest.approx(trend)
    late, of_base = card.measure("velocity_variance_spearman")[2:7:3]
    assert abs(late - of_base) > 0.02  # so that neither can stand for the other
    groups = [measure.group for measure in card.measures]
    assert list(dict.fromkeys(groups)) == ["quality", "efficiency", "diversity", "retention"]
    assert card.notes == ()
    with pytest.raises(ValueError, match=r"no measure 'fid', but w2, energy_distance, .* path_kl"):
        card.measure("fid")


class Counting(GaussianNB):
    """A classifier that counts its trainings, of all copies."""

    trainings = 0

    def fit(self, X, y):
        type(self).trainings += 1
        return super().fit(X, y)


def conditional(law, t, x, cond):
    """Moves base and student unlike, by their conditions."""
    return drift(law, t, x) + law["sd"] * cond


def test_a_card_with_conditions_is_that_of_its_solver_level_halves_floors_and_old_data():
    num, num_halves, num_floors, steps = 48, 60, 3, 6
    cond, nowhere = normal(num, 2, seed=4).astype(np.float32), np.array([5.0, 4.0], np.float32)
    card = report_card(
        conditional,
        TARGET,
        BASE,
        HELD_OUT,
        key=jax.random.key(0),
        old_data=np.tile(nowhere, (400, 1)),  # so that it does not matter which are drawn
        classifier=Counting(),
        num_samples=num,
        cond=cond,
        solver=MIDPOINT,
        num_steps=steps,
        nfe_solvers=(EULER,),
        nfe_steps=(1,),
        level=0.5,
        num_halves=num_halves,
        num_floors=num_floors,
    )
    arrays = card.arrays
    x0, real = jnp.asarray(arrays.trajectory[0]), arrays.real
    assert (card.level, card.num_halves, card.num_floors, card.solver) == (0.5, 60, 3, "Midpoint")
    assert Counting.trainings == 5 * (2 + num_halves + num_floors)  # five folds; value and base

    velocity = jax.jit(conditional)

    def rolled(law, cond, midpoint):
        x, step = x0, 1 / steps
        for k in range(steps):
            t = jnp.full(num, k * step)
            middle = x + step / 2 * velocity(law, t, x, cond)
            x = x + step * (
                velocity(law, t + step / 2, middle, cond) if midpoint else velocity(law, t, x, cond)
            )
        return np.asarray(x)

    for law, found in ((TARGET, arrays.samples), (BASE, arrays.base_samples)):
        np.testing.assert_allclose(found, rolled(law, cond, True), rtol=1e-4, atol=1e-5)
        for other in (rolled(law, cond, False), rolled(law, 0 * cond, True)):  # power
            assert np.abs(found - other).max() > 0.1
    one_step = gft.metrics.one_step_w2(velocity, TARGET, x0, real, cond)
    assert card.measure("one_step_w2").value == pytest.approx(one_step, rel=1e-5)
    assert card.nfe_curve.points[0].w2 == card.measure("one_step_w2").value
    t, x = np.repeat(arrays.times[:-1], num), arrays.base_trajectory[:-1].reshape(-1, 2)
    velocities = [velocity(law, t, x, np.tile(cond, (steps, 1))) for law in (TARGET, BASE)]
    retained = np.sqrt(np.mean(np.sum((velocities[0] - velocities[1]) ** 2, axis=1)))
    assert card.measure("velocity_distance").value == pytest.approx(float(retained), rel=1e-4)

    far = [
        np.sqrt(np.mean(np.sum((x - nowhere) ** 2, axis=1))) for x in (arrays.samples, arrays.base_samples)
    ]
    assert card.measure("w2_to_old_data")[2:7:3] == pytest.approx(tuple(map(float, far)), rel=1e-5)
    old = np.tile(nowhere, (num, 1))
    energy = gft.metrics.energy_distance(arrays.samples, old)
    assert card.measure("energy_distance_to_old_data").value == pytest.approx(energy, rel=1e-6)
    assert card.measure("w2_to_old_data").floor == 0.0

    for name, value in gft.metrics.prdc(arrays.samples, real)._asdict().items():
        assert card.measure(name).value == value
    of_base = gft.metrics.prdc(arrays.base_samples, real)
    assert (card.measure("precision").base, card.measure("recall").base) == of_base[:2]
    for name in ("frechet_distance", "kernel_distance"):
        expected = getattr(gft.metrics, name)(arrays.samples, real)
        assert card.measure(f"{name}_of_samples").value == expected
    epsilon = 0.05 * np.mean([np.sum((a - b) ** 2) for i, a in enumerate(real) for b in real[:i]])
    divergence = gft.metrics.sinkhorn_divergence(arrays.samples, real, absolute_epsilon=float(epsilon)).value
    assert card.measure("sinkhorn_divergence").value == pytest.approx(divergence, rel=1e-4)
    # Over all halves s is the usual standard error: within four of its own errors, and an interval of 0.95 is not.
    length, lengths = card.measure("path_length"), gft.metrics.path_length(arrays.trajectory)
    usual = np.std(lengths, ddof=1) / np.sqrt(num)
    reach = (length.high - length.low) / (2 * usual)
    assert reach == pytest.approx(0.679, rel=4 / np.sqrt(2 * num_halves))
    assert reach != pytest.approx(2.0, rel=4 / np.sqrt(2 * num_halves))
    without = {measure.name for measure in card.measures if measure.low is None}
    assert without == {"sinkhorn_divergence", "vendi_score", *gft.metrics.Prdc._fields}  # halves of 24 rows


def test_a_judge_has_no_interval_where_halves_tell_nothing_and_ends_it_in_the_metrics_range():
    keys = jax.random.split(jax.random.key(1))
    judge = Judge(*keys, level=0.5, num_halves=20, num_floors=3)
    x, base, pool = normal(30, 2), 1 + normal(30, 2, seed=1), normal(80, 2, seed=2)
    real = RealSet(pool[:30], pool)
    w2 = Comparison(("w2",), gft.metrics.w2, "data", "lower", (0.0, np.inf))
    # A share of rows far out: no half has any.
    share = Comparison(("a", "b"), lambda a, b: (np.mean(a > 9), np.mean(a > 0)), "", "lower", (0.0, 0.51))
    found = judge.compare("quality", [w2, share, w2._replace(least_half=16)], x, base, real, 7)
    distance, none, half, few = found
    interval = gft.metrics.confidence_interval(
        keys[0], gft.metrics.w2, x, real.reference, level=0.5, num_halves=20
    )
    assert distance[2:5] == interval[:3]
    assert distance.base == gft.metrics.w2(base, real.reference)
    floors = gft.metrics.floor(keys[1], gft.metrics.w2, pool, 30, 30, num_repeats=3)
    assert distance.floor == floors.mean() != floors[0]
    assert none[2:5] == (0.0, None, None)
    assert half.low < half.value <= half.high <= max(0.51, half.value)
    assert few[2:6] == (distance.value, None, None, distance.base)
    with pytest.raises(ValueError, match="not finite in 1 of 1 evaluations on the samples"):
        judge.of_rows("quality", "mean", np.full(4, np.nan), None, 7, "")


def test_evaluations_are_counted(card):
    counts = {measure.name: measure.num_evaluations for measure in card.measures}
    assert counts.pop("one_step_w2") == 1
    assert set(counts.values()) == {NUM_STEPS}
    points = [(point.solver, point.num_steps, point.num_evaluations) for point in card.nfe_curve.points]
    assert points == [("Euler", 1, 1), ("Euler", 4, 4), ("Midpoint", 1, 2), ("Midpoint", 4, 8)]
    first = card.nfe_curve.points[0]
    assert first.w2 == card.measure("one_step_w2").value
    assert card.nfe_curve.floor_w2 == card.measure("w2").floor
    # On this flow more steps lead nearer to the data, and past one step none is far from the floor.
    assert first.w2 > 1.5 * card.nfe_curve.points[1].w2
    assert card.nfe_curve.points[3].w2 < 1.5 * card.nfe_curve.floor_w2


def closed_forms():
    """Means over the paths of Euler's method, and of Euler's and Maruyama's, which stay normal about ``t mean``."""
    grid, step = np.linspace(0.0, 1.0, NUM_STEPS + 1), 1 / NUM_STEPS
    (mean, sd), (base_mean, base_sd) = ((np.asarray(law["mean"]), float(law["sd"])) for law in (TARGET, BASE))

    def spreads(sd):
        return np.cumprod([1.0, *(1 + step * slope_and_variance(t, sd)[0] for t in grid[:-1])])

    def squared_difference(t, at_mean, variance):
        """``E |v - v_base|^2`` where x is normal about ``t at_mean``."""
        (slope, _), (base_slope, _) = slope_and_variance(t, sd), slope_and_variance(t, base_sd)
        offset = mean - base_mean + slope * t * (at_mean - mean) - base_slope * t * (at_mean - base_mean)
        return np.sum(offset**2) + 2 * (slope - base_slope) ** 2 * variance

    compared = np.linspace(0, NUM_STEPS - 1, 20).round().astype(int)
    retained = [squared_difference(grid[k], base_mean, spreads(base_sd)[k] ** 2) for k in compared]
    entropy, variance = 0.0, 1.0
    for k, t in enumerate(grid[:-1]):
        slope, exact_variance = slope_and_variance(t, sd)
        noise = 0 < k < NUM_STEPS - 1
        if noise:
            # v and v_base tell their scores: the SDE drifts differ by (v - v_base) (1 + g^2 t / (2 (1 - t))).
            factor = (1 + LEVEL**2 * t / (2 * (1 - t))) ** 2 / (2 * LEVEL**2)
            entropy += step * factor * squared_difference(t, mean, variance)
            slope -= LEVEL**2 / (2 * exact_variance)
        variance = (1 + step * slope) ** 2 * variance + noise * LEVEL**2 * step
    energy = 2 * np.sum(np.diff(spreads(sd)) ** 2) / step
    return {
        "velocity_distance": np.sqrt(np.mean(retained)),
        "path_kl": entropy,
        "kinetic_energy": energy + np.sum(mean**2),
        "straightness": energy - 2 * (1 - spreads(sd)[-1]) ** 2,
    }


@pytest.mark.parametrize("name", ["velocity_distance", "path_kl", "kinetic_energy", "straightness"])
def test_paths_and_retention_are_the_closed_forms(card, name):
    measure, expected = card.measure(name), closed_forms()[name]
    error = standard_error(measure)
    assert abs(measure.value - expected) < 4 * error
    assert abs(measure.value - 1.5 * expected) > 4 * error  # power


def test_a_score_of_its_own_takes_the_place_of_the_derived_one():
    """With the exact one the number is the same, without a path, and under a coupling that refuses to derive it."""
    options = SMALL | {"num_halves": 2, "num_samples": 12, "num_steps": 5, "diffusion": DIFFUSION}
    derived, given = (
        report_card(drift, TARGET, BASE, HELD_OUT, **options, **more).measure("path_kl")
        for more in (
            {"path": PATH},
            {"score": exact_score, "coupling": gft.couplings.exact()},
        )
    )
    assert given.value == pytest.approx(derived.value, rel=1e-4)


def test_normalised_path_energy_is_the_excess_over_transport(card):
    arrays, steps = card.arrays, np.diff(card.arrays.trajectory, axis=0)
    energy = np.mean(np.sum(steps.astype(float) ** 2, axis=(0, 2))) * NUM_STEPS
    transport = gft.metrics.w2(arrays.trajectory[0], arrays.real) ** 2
    assert card.measure("normalised_path_energy").value == pytest.approx(
        abs(energy / transport - 1), rel=1e-4
    )


def test_the_base_itself_has_forgotten_nothing():
    card = report_card(drift, BASE, BASE, OLD, path=PATH, diffusion=DIFFUSION, num_halves=2, **SMALL)
    for name in ("velocity_distance", "path_kl"):
        assert card.measure(name)[2:5] == (0.0, None, None)  # no scatter among halves, no interval
    np.testing.assert_array_equal(card.arrays.velocity_distance, 0.0)
    assert all(measure.value == measure.base for measure in card.measures if measure.base is not None)


def test_samples_that_repeat_the_training_data_are_below_the_floor(card):
    independent = card.measure("w2_to_training_data")
    assert independent.low < independent.floor < independent.high
    assert independent.better == "as real"
    repeated = card.arrays.samples[:40]
    copies = report_card(
        drift, TARGET, BASE, HELD_OUT, training_data=repeated, classifier=GaussianNB(), num_halves=2, **SMALL
    )
    distance, accuracy = copies.measure("w2_to_training_data"), copies.measure("classifier_accuracy")
    assert distance.value < 1e-3 < 0.1 * distance.floor
    # 400 samples of two laws that are equal, and of two that are not.
    assert abs(accuracy.value - 0.5) < 4 * 0.5 / np.sqrt(400) < accuracy.base - 0.5


def test_what_cannot_be_measured_is_a_note_with_its_reason():
    few = SMALL | {"num_steps": 2, "num_halves": 2, "num_samples": 12}
    coupled = report_card(drift, TARGET, BASE, HELD_OUT, path=PATH, coupling=gft.couplings.exact(), **few)
    assert "the score follows from the velocity only where x0 is independent of x1" in coupled.notes[-1]
    for options, reason in (
        ({}, "no path KL: it needs the path"),
        ({"score": exact_score}, "no memoryless noise level: give the diffusion"),
        ({"path": gft.paths.brownian_bridge(0.3)}, "this path has no alpha and sigma"),
        ({"path": PATH}, "no step of the grid .* has noise"),
        ({"path": PATH, "source": gft.pairing.standard_normal((2,))}, "and another was given"),
    ):
        card = report_card(drift, TARGET, BASE, HELD_OUT, **options, **few)
        trend, note = card.notes
        assert re.match("no Spearman correlation of velocity variance and time: .* num >= 3", trend)
        assert note.startswith("no path KL: ")
        assert re.search(reason, note)
        assert "path_kl" not in [measure.name for measure in card.measures]


def test_what_the_samples_do_not_allow_is_a_note_with_its_reason(monkeypatch):
    """Paths that rest, fewer samples than entries, and a transport problem that is not solved."""

    def not_converged(x, y, absolute_epsilon):
        return gft.metrics.SinkhornDivergence(1.0, False, 0.25, absolute_epsilon)

    monkeypatch.setattr(gft.metrics, "sinkhorn_divergence", not_converged)
    few = SMALL | {"num_steps": 3, "num_halves": 2, "num_floors": 1}
    card = report_card(lambda params, t, x, cond=None: 0 * x, None, None, normal(24, 3, 5), **few)
    assert card.notes[:3] == (
        "no Sinkhorn divergence: its iteration left an error of 0.25 in the marginals",
        "no Frechet distance of samples: 12 samples of width 15 have no regular covariance",
        "no Spearman correlation of velocity variance and time: it is the same in all steps",
    )
    names = {measure.name for measure in card.measures}
    assert "kernel_distance_of_samples" in names
    assert not names & {"sinkhorn_divergence", "frechet_distance_of_samples", "velocity_variance_spearman"}


def test_chunks_change_nothing():
    few = SMALL | {"num_steps": 3, "num_halves": 2, "num_samples": 12, "path": PATH, "diffusion": DIFFUSION}
    whole, chunked = (
        report_card(drift, TARGET, BASE, HELD_OUT, **few, chunk_size=chunk_size) for chunk_size in (None, 5)
    )
    for ours, theirs in zip(chunked.measures, whole.measures, strict=True):
        for number, expected in ((ours.value, theirs.value), (ours.base, theirs.base)):
            assert number == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-5))
        assert (ours.low, ours.high) == (None, None)  # halves of six cover too rarely
    assert [measure.num_evaluations for measure in chunked.measures] == [
        measure.num_evaluations for measure in whole.measures
    ]
    assert chunked.measure("path_kl").value > 0
    assert chunked.nfe_curve.points[0].w2 == pytest.approx(whole.nfe_curve.points[0].w2, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_steps_may_adapt(chunk_size):
    """Samples are those of the sampler; paths are the exact ones at the times that are looked at."""
    few = SMALL | {"num_steps": 4, "num_halves": 2, "num_samples": 12}
    adapts = {
        "solver": diffrax.Dopri5(),
        "stepsize_controller": diffrax.PIDController(rtol=1e-4, atol=1e-4),
        "chunk_size": chunk_size,
    }
    card = report_card(drift, TARGET, BASE, HELD_OUT, **few, **adapts)
    path = card.arrays.trajectory
    expected = gft.sampling.sample_ode(drift, TARGET, path[0], **adapts)
    np.testing.assert_allclose(card.arrays.samples, expected.x, rtol=1e-5, atol=1e-5)
    times = np.linspace(0, 1, 5)
    np.testing.assert_allclose(card.arrays.times, times, rtol=1e-6)
    for t, x in zip(times, path, strict=True):
        sd = np.sqrt(slope_and_variance(t, float(TARGET["sd"]))[1])
        np.testing.assert_allclose(x, t * np.asarray(TARGET["mean"]) + sd * path[0], atol=2e-3)
    assert card.measure("w2").num_evaluations == int(np.max(expected.num_evaluations)) > 6
    assert card.num_steps is None
    assert "12 samples by Dopri5 with steps that adapt. Base" in markdown(card)
    assert "in 4 steps" in markdown(card._replace(num_steps=4))


def test_the_table_shows_every_number_and_is_aligned(card):
    text = markdown(card)
    tables = [[line for line in part.splitlines()] for part in text.split("\n\n") if part.startswith("|")]
    assert all(len({len(line) for line in table}) == 1 for table in tables)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[0][2:]]
    assert len(rows) == len(card.measures)
    for row, measure in zip(rows, card.measures, strict=True):
        for text, number in ((row[2], measure.value), (row[4], measure.base), (row[5], measure.floor)):
            assert (text == "") == (number is None)
            if number is not None:
                assert float(text) == pytest.approx(number, rel=1e-3, abs=6e-5)
        ends = None if row[3] == "none" else tuple(map(float, row[3].split(" to ")))
        expected = None if measure.low is None else pytest.approx(measure[3:5], rel=1e-3, abs=6e-5)
        assert ends == expected
    # Along each path of a normal law the velocity varies alike, and the ranks are those of all halves.
    assert {row[1] for row in rows if row[3] == "none"} == {
        "Sinkhorn divergence",
        "velocity variance Spearman",
    }
    assert "over 10 pairs of sets. Intervals by 50 halves" in markdown(card)
    assert [row[0] for row in rows if row[0]] == ["quality", "efficiency", "diversity", "retention"]
    failed = NfePoint("Heun", 2, 4, None, None, "3 of 9 samples are not finite")
    broken = card._replace(
        nfe_curve=card.nfe_curve._replace(points=(failed,)), notes=("no path KL: because",)
    )
    assert "failed: 3 of 9 samples are not finite" in markdown(broken)
    assert markdown(broken).endswith("Note: no path KL: because.\n")


def diverging(params, t, x, cond=None):
    return x / (0.5 - t[:, None])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": HELD_OUT[:8]}, "held_out has 8 samples .* needs at least 12"),
        ({"held_out": HELD_OUT[:20]}, "held_out and fresh together have 20: give at least 24"),
        (
            {"held_out": np.where(np.arange(400)[:, None] == 7, np.nan, HELD_OUT)},
            "1 of 400 samples in held_out",
        ),
        ({"fresh": HELD_OUT[:, :1]}, "one event shape"),
        ({"old_data": OLD[:20]}, "old_data has 20 samples .* needs at least 24"),
        ({"training_data": OLD[:11]}, "training_data has 11 samples .* needs at least 12"),
        ({"num_samples": 201}, "num_samples is 201; with 400 held-out samples .* between 12 and 200"),
        ({"num_samples": 11}, "num_samples is 11"),
        ({"num_samples": 12.5}, "num_samples is 12.5; .* an integer between 12 and 200"),
        ({"num_steps": 1.5}, "num_steps must be an integer >= 1, got 1.5"),
        ({"num_halves": 1}, "num_halves must be an integer >= 2, got 1"),
        ({"num_floors": 0}, "num_floors must be an integer >= 1, got 0"),
        ({"level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
        ({"cond": np.zeros(5)}, "cond must have one row for each of the 200 samples"),
        ({"held_out": HELD_OUT + 1j}, "held_out must be real, got complex numbers"),
        ({"source": lambda keys: (HELD_OUT[:7], None)}, r"a row for each of its 200 keys.* got \(7, 2\)"),
        ({"nfe_solvers": EULER}, r"the solvers of a curve are a list, if only of one, got Euler\(\)"),
        ({"nfe_steps": 4}, "the num_steps of a curve are a list, if only of one, got 4"),
        ({"solver": diffrax.ImplicitEuler()}, "ImplicitEuler"),
        ({"nfe_steps": (0,)}, "num_steps must be an integer >= 1, got 0"),
        ({"feature_extractor": lambda x: np.full((len(x), 3), np.nan)}, "not finite for 400 of 400 samples"),
    ],
)
def test_bad_input_is_refused_before_the_drift_is_called(without_hook, changes, message):
    def untouched(params, t, x, cond=None):
        raise AssertionError("the drift was called")

    arguments = {"held_out": HELD_OUT, **SMALL} | changes
    with pytest.raises(ValueError, match=message):
        report_card(untouched, TARGET, BASE, **arguments)


def test_samples_that_are_not_finite_are_counted_and_refused():
    with pytest.raises(
        ValueError, match=r"fine-tuned drift by Euler in 100 steps failed: 200 of 200 samples"
    ):
        report_card(diverging, TARGET, BASE, HELD_OUT, **SMALL)


# Quality against evaluations


def test_a_solve_that_fails_is_a_point_and_no_other_is_touched():
    x0, data = normal(40, 2, seed=5), HELD_OUT[:80]
    curve = nfe_curve(diverging, None, x0, data, [EULER, MIDPOINT], [1, 2])
    found = {(point.solver, point.num_steps): point for point in curve.points}
    assert list(found) == [("Euler", 1), ("Euler", 2), ("Midpoint", 1), ("Midpoint", 2)]
    sound = found.pop(("Euler", 1))  # all others evaluate the drift at t = 1/2
    assert sound.failure is None
    assert sound.w2 == pytest.approx(gft.metrics.w2(3 * x0, data[:40]), rel=1e-5)
    for point in found.values():
        assert point.failure == "40 of 40 samples are not finite"
        assert (point.w2, point.energy_distance) == (None, None)
    assert [point.num_evaluations for point in curve.points] == [1, 2, 2, 4]
    assert curve.num_samples == 40


def test_a_solve_that_ends_too_far_out_is_a_point_as_well(x64):
    """Two half steps of ``v = a x`` end at ``(1 + a / 2)^2 x0``, one step at ``(1 + a) x0``."""
    x0 = np.ones((4, 2))
    curve = nfe_curve(lambda a, t, x, cond=None: a * x, 1e100, x0, HELD_OUT[:8], [EULER], [1, 2])
    one, two = curve.points
    assert (one.failure, two.w2) == (None, None)
    assert one.w2 == pytest.approx(np.sqrt(2) * 1e100)
    assert two.failure == "4 of 4 samples are beyond 1e+150, and their squares overflow"


def test_conditions_follow_their_rows():
    x0, shift = normal(60, 2, seed=7), normal(60, 2, seed=8)
    curve = nfe_curve(lambda params, t, x, cond=None: cond, None, x0, HELD_OUT[:80], [EULER], [1], cond=shift)
    assert curve.points[0].w2 == pytest.approx(gft.metrics.w2((x0 + shift)[:40], HELD_OUT[:40]), rel=1e-5)


def test_the_floor_is_between_real_samples_that_share_no_row():
    x0 = normal(100, 2, seed=6)
    few = {"solvers": [EULER], "num_steps": [1]}
    halves = nfe_curve(drift, TARGET, x0, HELD_OUT[:60], **few)
    assert halves.num_samples == 30
    assert halves.floor_w2 == gft.metrics.w2(HELD_OUT[30:60], HELD_OUT[:30])
    assert halves.floor_energy_distance == gft.metrics.energy_distance(HELD_OUT[30:60], HELD_OUT[:30])
    fresh = nfe_curve(drift, TARGET, x0, HELD_OUT[:60], fresh=HELD_OUT[100:150], **few)
    assert fresh.num_samples == 50
    assert fresh.floor_w2 == gft.metrics.w2(HELD_OUT[100:150], HELD_OUT[:50])
    drawn = [
        nfe_curve(drift, TARGET, x0, HELD_OUT[:60], key=jax.random.key(seed), **few) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert halves.floor_w2 not in (drawn[0].floor_w2, drawn[2].floor_w2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvers": []}, "one or more solvers and numbers of steps, got 0 and 1"),
        ({"solvers": [EULER, EULER]}, r"each solver is wanted once, got \['Euler', 'Euler'\]"),
        ({"solvers": [diffrax.ImplicitEuler()]}, "ImplicitEuler"),
        ({"num_steps": [1, 0]}, "num_steps must be an integer >= 1, got 0"),
        ({"num_steps": [1.5]}, "num_steps must be an integer >= 1, got 1.5"),
        ({"num_steps": 4}, "the num_steps of a curve are a list, if only of one, got 4"),
        ({"solvers": EULER}, r"the solvers of a curve are a list, if only of one, got Euler\(\)"),
        ({"x0": [[0.0, 1.0]] * 4}, r"x0 must be an array \[num, \*event\], got a list"),
        ({"cond": np.zeros((1, 2))}, r"cond must have one row for each of the 8 samples, got shape \(1, 2\)"),
        ({"cond": np.zeros((9, 2))}, r"cond must have one row for each of the 8 samples, got shape \(9, 2\)"),
        ({"num_steps": [2, 2]}, r"each num_steps is wanted once, got \[2, 2\]"),
        ({"time_grid": lambda num: gft.sampling.time_grids.uniform(num)[::-1]}, "from noise to data"),
        ({"time_grid": lambda num: gft.sampling.time_grids.uniform(3)}, "got 4 times .* for num_steps = 1"),
        ({"data": HELD_OUT[:3]}, r"data has 3 samples .* needs at least 4"),
        ({"data": HELD_OUT[:, :1]}, "one event shape"),
        ({"fresh": HELD_OUT[:1]}, "fresh has 1 samples .* needs at least 2"),
        ({"x0": np.full((4, 2), np.inf)}, "4 of 4 samples in x0 are not finite"),
    ],
)
def test_a_curve_refuses_bad_input_before_the_drift_is_called(without_hook, changes, message):
    def untouched(params, t, x, cond=None):
        raise AssertionError("the drift was called")

    arguments = {"x0": normal(8, 2), "data": HELD_OUT[:40], "solvers": [EULER], "num_steps": [1]} | changes
    with pytest.raises(ValueError, match=message):
        nfe_curve(untouched, None, **arguments)
