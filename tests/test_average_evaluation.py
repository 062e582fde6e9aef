"""Average velocities in the report card and in the curve of quality against evaluations."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_toy import laws
from samples import normal

import gft_jax as gft
from gft_jax.evaluation import AVERAGE_VELOCITY, markdown, nfe_curve, report_card

EULER = diffrax.Euler()


def of_laws():
    """The average velocity from noise to the target, which its parameters scale."""
    exact = gft.gaussian.average_velocity(gft.paths.linear(), laws()[0], laws()[2])
    return lambda params, t, s, x, cond=None: params * exact(t, s, x)


def target(num_rows, seed):
    return np.asarray(gft.gaussian.sample(jax.random.key(seed), laws()[2], num_rows))


def test_an_exact_average_is_as_good_by_any_number_of_steps(x64):
    average, x0, data = of_laws(), normal(40, 2, seed=0), target(80, 1)
    drift = gft.drifts.instantaneous(average)
    flow = x0 + average(1.0, jnp.zeros(40), jnp.ones(40), jnp.asarray(x0))
    expected = gft.metrics.w2(flow, data[:40]), gft.metrics.energy_distance(flow, data[:40])
    for chunk_size in (None, 16):
        options = {"chunk_size": chunk_size}
        points = nfe_curve(drift, 1.0, x0, data, [EULER], [1, 8], average=average, **options).points
        assert [point[:3] for point in points] == [
            ("Euler", 1, 1),
            ("Euler", 8, 8),
            (AVERAGE_VELOCITY, 1, 1),
            (AVERAGE_VELOCITY, 8, 8),
        ]
        for point in points[2:]:
            np.testing.assert_allclose(point[3:5], expected, rtol=1e-8)
            assert point.failure is None
        assert abs(points[0].w2 - expected[0]) > 0.3
        assert abs(points[1].w2 - expected[0]) > 1e-3
        assert points[:2] == nfe_curve(drift, 1.0, x0, data, [EULER], [1, 8], **options).points


def test_its_steps_are_those_of_the_grid_and_its_conditions_those_of_the_rows(x64):
    def average(scale, t, s, x, cond=None):
        return scale * (s - t)[:, None] * cond

    x0, cond, data = normal(40, 2, seed=2), 1 + normal(40, 2, seed=3), target(80, 4)
    curve = nfe_curve(
        gft.drifts.instantaneous(average),
        2.0,
        x0,
        data,
        [EULER],
        [3],
        cond=cond,
        time_grid=lambda num: np.linspace(0, 1, num + 1) ** 2,
        average=average,
    )
    shift = 2.0 * sum(np.diff(np.array([0, 1, 4, 9]) / 9) ** 2) * cond
    assert curve.points[1].w2 == pytest.approx(gft.metrics.w2(x0 + shift, data[:40]), rel=1e-9)
    assert curve.points[1].w2 != pytest.approx(gft.metrics.w2(x0 + 2 / 3 * cond, data[:40]), rel=1e-3)


def test_steps_that_fail_are_points_and_no_other_is_touched():
    def average(params, t, s, x, cond=None):
        return jnp.where((s - t > 0.75)[:, None], 2 * x, jnp.nan)

    x0, data = normal(40, 2, seed=5), target(80, 6)
    curve = nfe_curve(lambda params, t, x, cond=None: x, (), x0, data, [EULER], [1, 2], average=average)
    *others, one, two = curve.points
    assert [point.failure for point in (*others, one)] == [None, None, None]
    assert one.w2 == pytest.approx(gft.metrics.w2(3 * x0, data[:40]), rel=1e-5)
    assert two == (AVERAGE_VELOCITY, 2, 2, None, None, "40 of 40 samples are not finite")


@pytest.mark.parametrize("chunk_size", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_a_card_has_the_one_step_and_the_points_of_the_average_and_all_else_of_the_velocity(chunk_size):
    average, held_out = of_laws(), target(60, 7)
    drift = gft.drifts.instantaneous(average)
    few = {
        "key": jax.random.key(0),
        "num_samples": 24,
        "num_steps": 20,
        "nfe_solvers": [EULER],
        "nfe_steps": [1, 2],
        "num_halves": 10,
        "num_floors": 2,
        "path": gft.paths.linear(),
        "chunk_size": chunk_size,
    }
    with_average, without = (
        report_card(drift, 1.0, 0.9, held_out, **few, **more) for more in ({"average": average}, {})
    )
    x0, real = jnp.asarray(without.arrays.trajectory[0]), without.arrays.real
    flow = x0 + average(1.0, jnp.zeros(24), jnp.ones(24), x0)
    expected = gft.metrics.w2(flow, real)
    ours, theirs = (card.measure("one_step_w2") for card in (with_average, without))
    assert ours.value == pytest.approx(expected, rel=1e-5)
    assert ours.low < expected < ours.high
    assert (ours.num_evaluations, ours.floor) == (1, theirs.floor)
    assert abs(theirs.value - expected) > 0.3  # one Euler step
    assert [each for each in with_average.measures if each != ours] == [
        each for each in without.measures if each != theirs
    ]
    euler, points = with_average.nfe_curve.points[:2], with_average.nfe_curve.points[2:]
    assert euler == without.nfe_curve.points
    assert [point[:3] for point in points] == [(AVERAGE_VELOCITY, 1, 1), (AVERAGE_VELOCITY, 2, 2)]
    assert [point.w2 for point in points] == pytest.approx([expected, expected], rel=1e-5)
    assert without.notes == ()
    (note,) = with_average.notes
    assert note.startswith("one step W2 is of one step of the average velocity")
    text = markdown(with_average)
    assert "| one step W2 " in text
    assert f"Note: {note}." in text
    assert f"| {AVERAGE_VELOCITY} |" in text


def test_what_is_no_average_velocity_is_refused_before_the_drift_is_called():
    def untouched(params, t, x, cond=None):
        raise AssertionError("the drift was called")

    held_out, x0 = target(60, 8), normal(40, 2, seed=9)
    with pytest.raises(ValueError, match=r"no second time.*two_time_params"):
        nfe_curve(untouched, (), x0, held_out, [EULER], [1], average=untouched)
    with pytest.raises(ValueError, match=r"no second time.*two_time_params"):
        report_card(untouched, (), (), held_out, key=jax.random.key(0), average=untouched)
