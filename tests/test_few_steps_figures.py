"""The figures of a few_steps run, and those of the plane where methods have steps of their own."""

import numpy as np

from experiments.few_steps.figures import by_evaluations, few_step_panels
from experiments.few_steps.methods import FEW_STEP_METHODS
from experiments.few_steps.scores import EVALUATIONS, energy_at, w2_at
from experiments.planar_figures import moving_samples
from experiments.plots import look


def _rows(evaluations):
    """A log with one seed: base, and two methods whose W2 is 2 / evaluations, and half of that."""
    rows = [{"kind": "floor", "seed": 0, "w2": 0.1, "energy_distance": 0.0}]
    for name, steps, scale in (("base", (0,), 3.0), ("plain", (0, 10), 2.0), ("mean-flow", (0, 10), 1.0)):
        for step in steps:
            scores = {w2_at(count): scale / count for count in evaluations}
            scores |= {energy_at(count): scale / count**2 for count in evaluations}
            cost = {} if name == "base" else {"forward_evaluations": 1e6 * step}
            rows.append({"kind": "evaluation", "method": name, "seed": 0, "step": step, **scores, **cost})
    return rows


def test_figure_shows_every_method_by_evaluations_and_by_cost():
    methods = ["plain", "mean-flow"]
    assert by_evaluations(_rows(()), methods) is None
    figure = by_evaluations(_rows(EVALUATIONS), methods)
    left, middle, right = figure.axes
    assert [container.lines[0].get_ydata()[0] for container in left.containers] == [2.0, 1.0]
    np.testing.assert_allclose(middle.containers[1].lines[0].get_ydata(), 1.0 / np.asarray(EVALUATIONS) ** 2)
    np.testing.assert_allclose(right.lines[0].get_xdata(), [0, 10])
    assert right.lines[1].get_ydata()[-1] == 1.0


def test_panels_of_samples_by_method_and_number_of_evaluations():
    points = np.random.default_rng(0).normal(size=(len(EVALUATIONS), 6, 2))
    images = np.random.default_rng(0).uniform(-1, 1, size=(len(EVALUATIONS), 16, 8, 8))
    for samples, real in ((points, points[0]), (images, None)):
        figure = few_step_panels({"mean-flow": samples, "base": samples}, real, ["plain", "mean-flow"])
        assert len(figure.axes) == 2 * len(EVALUATIONS)  # base first; plain has none
        assert figure.axes[0].texts[0].get_text() == "base"
        assert figure.axes[len(EVALUATIONS)].texts[0].get_text() == "mean-flow"
        assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["1 evaluation", "2"]
    assert few_step_panels({}, None, ["plain"]) is None


def test_methods_with_steps_of_their_own_are_shown_at_the_same_parts_of_these():
    """Six of ten evaluations each, the last among them, with its own step over every panel."""
    points = np.zeros((3, 2))
    snapshots = {
        "plain": {10 * k: points + k for k in range(10)},
        "reflow": {7 * k: points - k for k in range(10)},
    }
    figure = moving_samples(snapshots, {}, None, ["plain", "reflow"])
    axes = np.reshape(figure.axes, (2, 6))
    for row, every, sign in zip(axes, (10, 7), (1, -1), strict=True):
        assert [ax.get_title(loc="left") for ax in row] == [f"step {every * k}" for k in (0, 2, 4, 5, 7, 9)]
        shown = [ax.collections[0].get_offsets()[0, 0] for ax in row]
        assert shown == [sign * k for k in (0, 2, 4, 5, 7, 9)]


def test_no_two_methods_look_alike():
    looks = {tuple(look(name, list(FEW_STEP_METHODS)).values()) for name in FEW_STEP_METHODS}
    colours = {colour for colour, _ in looks}
    assert len(looks) == len(colours) == len(FEW_STEP_METHODS)
