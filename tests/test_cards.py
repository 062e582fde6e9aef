"""Report cards in a run folder: their files, their figure, their place in the report, and the settings behind them."""

import json

import numpy as np
import pytest

from experiments import plots
from experiments.card_figures import card_figure
from experiments.card_page import card_section
from experiments.cards import read_cards, write_card
from experiments.configs.settings import Controls
from experiments.configs.toy2d import Toy2d
from experiments.evaluate import recorded_settings
from experiments.run_folder import open_run
from gft_jax.evaluation import AVERAGE_VELOCITY, CardArrays, Measure, NfeCurve, NfePoint, ReportCard, markdown

FAILED = "3 of 9 samples are not finite"


def card():
    rows, paths, times = np.zeros((9, 2)), np.zeros((5, 9, 2)), np.linspace(0.0, 1.0, 5)
    points = (
        NfePoint("Euler", 1, 1, 0.9, 0.5, None),
        NfePoint("Euler", 2, 2, None, None, FAILED),
        NfePoint("Euler", 4, 4, 0.3, -0.01, None),
        NfePoint("Heun", 1, 2, 0.6, 0.25, None),
    )
    variance, change = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.25])
    return ReportCard(
        measures=(
            Measure("quality", "w2", 0.25, 0.2, 0.3, 1.5, 0.125, 4, "data", "lower"),
            Measure("diversity", "recall", 1.0, None, None, 0.75, 0.5, 4, "", "as real"),
            Measure("retention", "path_kl", 7.5, -1.0, 16.0, None, None, 4, "nats", "lower"),
        ),
        nfe_curve=NfeCurve(points, 0.125, -0.002, 9),
        notes=("no <b>: because",),
        arrays=CardArrays(
            rows, rows, rows, times, paths, paths, variance, variance / 2, np.array([0.0, 0.5]), change
        ),
        num_samples=9,
        solver="Euler",
        num_steps=4,
        level=0.95,
        num_halves=50,
        num_floors=10,
    )


def write(run, name="plain-seed0"):
    write_card(run / "cards" / name, card(), {"method": "plain", "seed": 0}, card_figure(card()))


def test_a_card_is_read_as_it_was_written(tmp_path):
    assert read_cards(tmp_path) == []
    write(tmp_path)
    write(tmp_path, "base")
    base, plain = read_cards(tmp_path)
    assert (base.name, plain.name) == ("base", "plain-seed0")
    assert plain.measures == card().measures
    assert plain.nfe_curve == card().nfe_curve
    assert plain.notes == card().notes
    assert dict(plain.facts) == {
        "method": "plain",
        "seed": 0,
        "num_samples": 9,
        "solver": "Euler",
        "num_steps": 4,
        "level": 0.95,
        "num_halves": 50,
        "num_floors": 10,
    }
    folder = tmp_path / "cards" / "plain-seed0"
    assert (folder / "card.md").read_text() == markdown(card())
    assert plain.figure == (folder / "card.png").read_bytes()
    assert plain.figure.startswith(b"\x89PNG")


def test_of_an_interrupted_evaluation_no_card_is_read(tmp_path, monkeypatch):
    write(tmp_path)

    def interrupted(figure, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert read_cards(tmp_path) == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"measures": []}', '{"measures": [{"value": 1}]}', '{"measures": 3}']
)
def test_a_card_that_cannot_be_read_is_named(tmp_path, content):
    write(tmp_path)
    path = tmp_path / "cards" / "plain-seed0" / "card.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"card\.json"):
        read_cards(tmp_path)


def test_a_card_without_its_facts_is_to_be_made_again(tmp_path):
    write(tmp_path)
    path = tmp_path / "cards" / "plain-seed0" / "card.json"
    content = json.loads(path.read_text())
    del content["num_halves"], content["level"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"card\.json lacks level, num_halves: make the card again"):
        read_cards(tmp_path)


def test_the_section_of_the_page_holds_every_number(tmp_path):
    assert card_section([]) == ""
    write(tmp_path)
    section = card_section(read_cards(tmp_path))
    for text in (
        "plain-seed0",
        "0.2500",
        "0.2000 to 0.3000",
        "1.500",
        "0.1250",
        "<td>none</td>",
        "by 50 halves",
        "over 10 pairs of sets",
        "path KL",
        "&minus;1.000 to 16.00",
        "nats",
    ):
        assert text in section
    assert "<b>" not in section
    assert "no &lt;b&gt;: because." in section
    assert section.count("data:image/png;base64,") == 1


def test_the_figure_shows_points_floors_and_gaps():
    w2, energy, along, change = card_figure(card()).axes
    euler, heun, floor = w2.lines
    np.testing.assert_array_equal(euler.get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(euler.get_ydata(), [0.9, np.nan, 0.3])
    np.testing.assert_array_equal(heun.get_xdata(), [2])
    assert floor.get_ydata()[0] == 0.125
    assert "1 solves failed" in w2.texts[0].get_text()
    np.testing.assert_array_equal(energy.lines[0].get_ydata(), [0.5, np.nan, -0.01])
    assert energy.lines[2].get_ydata()[0] == -0.002
    tuned, base = along.lines
    np.testing.assert_array_equal(tuned.get_xdata(), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_array_equal(tuned.get_ydata(), 2 * np.asarray(base.get_ydata()))
    np.testing.assert_array_equal(change.lines[0].get_ydata(), [0.5, 0.25])


def test_four_solvers_and_the_average_velocity_are_told_apart():
    names = ("Euler", "Midpoint", "Heun", "Tsit5", AVERAGE_VELOCITY)
    points = tuple(NfePoint(name, 1, 1, 0.5 + i, 0.1 + i, None) for i, name in enumerate(names))
    for ax in card_figure(card()._replace(nfe_curve=NfeCurve(points, 0.1, 0.0, 9))).axes[:2]:
        *curves, floor = ax.lines
        assert [line.get_label() for line in curves] == list(names)
        assert len({line.get_color() for line in (*curves, floor)}) == 6
        assert len({line.get_marker() for line in curves}) == 5
        assert [text.get_text() for text in ax.get_legend().get_texts()][:5] == list(names)


@pytest.mark.parametrize(
    ("values", "floor"), [((0.9, 0.5, 0.3), 0.25), ((0.35, 0.3, 0.26), 0.22), ((9.0, 4.0, 3.0), 2.5)]
)
def test_w2_has_labels_beside_its_points_and_floor(values, floor):
    points = tuple(NfePoint("Euler", 2**i, 2**i, w2, 0.1, None) for i, w2 in enumerate(values))
    ax = card_figure(card()._replace(nfe_curve=NfeCurve(points, floor, -0.002, 9))).axes[0]
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    for value in (*values, floor):
        assert min(abs(np.log(tick / value)) for tick in ticks) < np.log(1.3)
    labels = ax.yaxis.get_major_formatter().format_ticks(ticks)
    assert [float(label) for label in labels] == pytest.approx(ticks)


def test_settings_are_those_that_the_run_was_started_with(tmp_path):
    settings = Toy2d(
        target="s-curve", seeds=(3, 4), methods=("plain",), num_target=7, controls=Controls(l2_sp=0.3)
    )
    run = open_run(settings, tmp_path, {}).path
    assert recorded_settings(run) == settings
    path = run / "config.json"
    facts = json.loads(path.read_text())
    for changes, message in (
        ({"experiment": "mine"}, "names the experiment 'mine', whose held-out data are not known"),
        ({"config": facts["config"] | {"colour": 1}}, "does not hold the settings of this version: .*colour"),
        ({"config": {"seeds": [0]}}, "does not hold the settings of this version: 'controls'"),
        ({"config": facts["config"] | {"num_target": 0}}, "--num-target is 0"),
        ({"config": None}, "does not hold the settings"),
    ):
        path.write_text(json.dumps(facts | changes))
        with pytest.raises(ValueError, match=message):
            recorded_settings(run)
