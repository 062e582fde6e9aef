"""Conditional generation under each coupling: conditions, scores, words, and a tiny comparison end to end."""

import json

import jax
import numpy as np
import optax
import pytest
from programs import call

import gft_jax as gft
from experiments.couplings import __main__ as couplings
from experiments.couplings import conditional, conditional_flow, conditional_page, conditional_tasks
from experiments.couplings.comparison import Outcome
from experiments.couplings.conditional_figure import comparison_figure
from experiments.data.eight_to_moons import RADIUS, labelled_moons

# Conditions


def test_labels_of_the_moons_are_those_of_their_half_circles():
    x, labels = labelled_moons(np.random.default_rng(0), 400)
    # Every shift that may have been drawn is undone.
    back = x[:, None] + 1.0 - np.linspace(0.0, 0.6, 61)[:, None]
    to_outer = np.abs(np.linalg.norm(back, axis=-1) - 3.0) + np.maximum(-back[..., 1], 0.0)
    to_inner = np.abs(np.linalg.norm(back - [3.0, 1.5], axis=-1) - 3.0) + np.maximum(back[..., 1] - 1.5, 0.0)
    nearer = (to_inner.min(axis=1) < to_outer.min(axis=1)).astype(int)
    assert np.bincount(labels).tolist() == [200, 200]
    assert np.mean(nearer == labels) > 0.98


def test_the_drift_is_told_the_mode_of_the_start_as_the_coupling_moved_it(monkeypatch):
    monkeypatch.setattr(conditional_tasks, "NUM_DATA", 256)
    task = conditional_tasks.mode_task(0)

    def modes_of(x0):
        return np.round(np.arctan2(x0[..., 1], x0[..., 0]) / (np.pi / 4)).astype(int) % 8

    batch = task.batches(gft.couplings.exact(), 64, 0).batch(0)
    np.testing.assert_array_equal(batch.cond, modes_of(np.asarray(batch.x0)))
    assert batch.cond.shape == (64,)
    many = task.batches(gft.couplings.exact(), 64, 0).many(0, 1)
    np.testing.assert_array_equal(many.cond[0], batch.cond)
    for mode, (rows,) in enumerate(task.x0):  # the starts that the samples of this mode are made of
        centre = RADIUS * np.array([np.cos(mode * np.pi / 4), np.sin(mode * np.pi / 4)])
        np.testing.assert_allclose(rows.mean(axis=0), centre, atol=0.02)
        np.testing.assert_allclose(np.cov(rows.T), 0.1**0.5 * np.eye(2), atol=0.02)


def test_samples_of_a_moon_start_anywhere_and_are_scored_by_points_of_this_moon(monkeypatch):
    monkeypatch.setattr(conditional_tasks, "NUM_POINTS", 64)
    monkeypatch.setattr(conditional_tasks, "NUM_DATA", 256)
    task = conditional_tasks.moon_task(0)
    for points in (task.real, task.others, [task.x1[task.cond == moon] for moon in (0, 1)]):
        outer, inner = points
        assert outer[:, 1].mean() > 1 > -1 > inner[:, 1].mean()
    assert not np.array_equal(task.real, task.others)
    np.testing.assert_array_equal(*task.x0)
    octants = np.round(np.arctan2(task.x0[0, 0, :, 1], task.x0[0, 0, :, 0]) / (np.pi / 4)).astype(int) % 8
    assert np.bincount(octants).tolist() == [8] * 8


def test_held_out_digits_are_of_their_class_and_not_trained_on():
    task = conditional_tasks.digit_task(3)
    trained = {image.tobytes(): label for image, label in zip(task.x1, task.cond, strict=True)}
    assert not any(image.tobytes() in trained for images in task.real for image in images)
    # The floor's images are trained on, which tells their class.
    assert all(
        trained[image.tobytes()] == label for label, images in enumerate(task.others) for image in images
    )
    assert not np.array_equal(task.real, conditional_tasks.digit_task(4).real)


# Training


def test_the_learning_rate_stays_or_falls_to_zero(monkeypatch):
    monkeypatch.setattr(conditional_tasks, "NUM_DATA", 256)
    rates = []

    def adamw(rate, weight_decay):
        rates.append(rate)
        return optax.sgd(0.0)

    monkeypatch.setattr(conditional_flow.optax, "adamw", adamw)
    task = conditional_tasks.moon_task(0)
    drift = gft.drifts.from_linen(task.network)
    stream = task.batches(gft.couplings.independent(), 8, 0)
    for rate in ("constant", "cosine"):
        conditional_flow.trained(task, drift, stream, 0, 2, rate)
    assert rates[0] == 1e-3
    assert [float(rates[1](step)) for step in (0, 1, 2)] == pytest.approx([3e-3, 1.5e-3, 0.0])


# Scores


def test_conditional_w2_is_that_of_each_condition_and_sees_swapped_ones():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(2, 30, 2)) + np.array([[[0.0, 0.0]], [[10.0, 0.0]]])
    moved = real + np.array([[[0.3, 0.0]], [[0.0, 0.4]]])  # W2 of a translation is its length
    assert conditional_flow.conditional_w2(moved[:, None], real) == pytest.approx((0.125) ** 0.5)
    assert conditional_flow.conditional_w2(real[::-1, None], real) > 9.0
    both = np.stack([moved, real], axis=1)
    assert conditional_flow.conditional_w2(both, real) == pytest.approx((0.125 / 2) ** 0.5)


def test_a_flow_is_measured_condition_by_condition_and_by_each_number_of_steps():
    shift = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
    x0 = np.random.default_rng(0).normal(size=(3, 2, 6, 2)).astype(np.float32)
    x0[:, 1] = x0[:, 0, ::-1]
    real = x0[:, 0] + shift[:, None]
    none = (None,) * 5
    task = conditional_tasks.Task(*none, x0, real, real + np.float32([0.3, 0.4]))

    def drift(params, t, x, cond):  # in the whole time by the shift of its condition, not at all at first
        return params * 2 * t[:, None] * jax.numpy.asarray(shift)[cond]

    numbers, arrays = conditional_flow.measured(task, drift, jax.numpy.ones(()))
    lengths = np.linalg.norm(shift, axis=1)
    for num in conditional_flow.NUM_STEPS:
        left = 1 / num  # Euler's error
        assert numbers[f"w2_{num}"] == pytest.approx(left * np.mean(lengths**2) ** 0.5, rel=1e-3)
    assert numbers["path_length"] == pytest.approx(0.99 * lengths.mean(), rel=1e-4)
    assert numbers["floor"] == pytest.approx(0.5, rel=1e-5)
    near = [gft.metrics.energy_distance(arrays["samples"][c], real[c]) for c in range(3)]
    assert numbers["energy_distance"] == pytest.approx(np.mean(near), rel=1e-4)
    np.testing.assert_allclose(arrays["samples"], real - 0.01 * shift[:, None], atol=1e-5)


@pytest.mark.parametrize(("of_source", "expected"), [(False, 2.0), (True, 0.0)])
def test_skew_is_the_distance_by_which_conditions_move_the_mean_of_the_other_end(of_source, expected):
    def many(first, count):
        rng = np.random.default_rng(first)
        cond = rng.integers(0, 2, (count, 200))
        noise = rng.normal(size=(count, 200, 3))
        x0 = noise + np.where(cond, 2.0, -2.0)[..., None] * [1.0, 0.0, 0.0]
        keys = jax.random.split(jax.random.key(0), (count, 200))
        return gft.Batch(x0, noise[::-1], keys, cond)

    stream = gft.pairing.Batches(lambda step: many(step, 1), many, lambda step: None)
    assert conditional_flow.skew(stream, of_source) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ([1.0, 1.1, 0.9], "yes (3 of 3 seeds)"),
        ([1.0, -0.9, 0.2], "undecided (2 of 3 seeds)"),
        ([-1.0, -1.1, -0.9], "**no** (0 of 3 seeds)"),
        ([1.0], "undecided (1 of 1 seeds)"),
    ],
)
def test_a_verdict_follows_from_the_differences(differences, says):
    assert conditional_page.verdict(differences) == says


def test_the_mosaic_has_a_row_of_images_for_each_class():
    classes = np.linspace(-0.5, 0.5, 10)[:, None, None, None]
    digits = np.broadcast_to(classes, (10, 9, 8, 8))
    figure = comparison_figure({"digit": {"exact": digits, "real": digits[:, :3]}})
    real, exact = (np.asarray(ax.images[0].get_array()) for ax in figure.axes)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["real", "exact"]
    assert real.shape == (100, 30)
    np.testing.assert_allclose(exact.reshape(10, 10, 8, 10)[:, 1:-1, 0, 1:-1], digits[:, 0])


# The program


@pytest.mark.slow
def test_an_interrupted_comparison_of_conditions_goes_on_where_it_was(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(conditional_tasks, "NUM_POINTS", 24)
    monkeypatch.setattr(conditional_tasks, "NUM_DATA", 512)
    monkeypatch.setattr(conditional_flow, "_SKEW_STEPS", 1)
    out = tmp_path / "runs"
    given = ("conditional", "--tasks", "mode", "--seeds", "0", "--steps", "2", "--out", out, "--couplings")
    assert call(monkeypatch, couplings, *given, "respecting") == 0
    content = (out / "mode-respecting-seed0.json").read_bytes()
    assert "| respecting |" in (out / "couplings_conditional.md").read_text()

    made = []
    numbers = json.loads(content)["numbers"] | {"w2_100": 9.0}
    samples = np.zeros((8, 24, 2))

    def without_training(task, coupling, seed, num_steps, rate):
        made.append(coupling)
        return Outcome(numbers, {"samples": samples})

    monkeypatch.setattr(conditional, "run", without_training)
    assert call(monkeypatch, couplings, *given, "independent", "respecting") == 0
    assert made == ["independent"]
    assert (out / "mode-respecting-seed0.json").read_bytes() == content
    page = (out / "couplings_conditional.md").read_text()
    difference = f"{9.0 - json.loads(content)['numbers']['w2_100']:.3f}"
    assert f"| independent - respecting | 100 Euler steps | {difference} | {difference} |" in page
    assert (out / "couplings_conditional.png").stat().st_size > 10_000


def test_a_comparison_of_conditions_refuses_what_it_does_not_know(monkeypatch, capsys):
    assert call(monkeypatch, couplings, "conditional", "--tasks", "mode", "mode") == 2
    assert "--tasks is ('mode', 'mode'); allowed is one or more, each once" in capsys.readouterr().err
    assert call(monkeypatch, couplings, "conditional", "--couplings", "optimal") == 2
    assert "optimal" in capsys.readouterr().err
