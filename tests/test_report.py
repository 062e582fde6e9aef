import csv
import json
import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments import plots, report
from experiments.images.figures import as_shown
from experiments.page import listing, render
from experiments.path_kl_figure import path_kls
from experiments.summary import COLUMNS, Statistic, read_metrics, summarise
from experiments.summary_text import render_text, write_summary
from experiments.time_section import left_out, time_section

METHODS = ["gradual-linear", "gradual-self-paced", "plain", "from-scratch"]


def evaluation(method, seed, step, w2, **others):
    row = {"kind": "evaluation", "method": method, "seed": seed, "step": step, "w2": w2}
    return row | {"energy_distance": w2 / 10, "path_length": 9.0 - w2 / 10, "one_step_w2": w2 + 1.0} | others


def train(method, seed, step, num_steps):
    gradual = method.startswith("gradual")
    weight = min(1.0, 0.05 + step / num_steps) if gradual else 1.0
    return {
        "kind": "train",
        "method": method,
        "seed": seed,
        "step": step,
        "loss": 1.0,
        "temperature": 1 / weight - 1,
        "target_weight": weight,
        "effective_target_weight": 0.9 * weight if gradual else None,
        "grad_norm": 1.0,
    }


def run_rows(methods=METHODS, seeds=(0, 1), num_steps=200):
    rows = []
    for seed in seeds:
        rows.append({"kind": "floor", "seed": seed, "w2": 2.7 + seed / 10, "energy_distance": 0.01})
        rows.append(evaluation("base", seed, 0, 4.0))
        for index, method in enumerate(methods):
            start = 9.0 if method == "from-scratch" else 4.0
            for step in range(0, num_steps + 1, 20):
                w2 = 3.0 + (start - 3.0) * math.exp(-step / (20 + 5 * index)) + 0.01 * seed
                rows.append(evaluation(method, seed, step, w2))
            rows += [train(method, seed, step, num_steps) for step in range(0, num_steps, 10)]
            rows.append(
                {"kind": "timing", "method": method, "seed": seed, "seconds": 2.0, "steps": num_steps}
            )
    return rows


def run_config(methods=METHODS, seeds=(0, 1), num_steps=200):
    return {
        "experiment": "digits",
        "command": "python -m experiments.train digits --steps 200",
        "versions": {"jax": "0.10.2", "numpy": "2.4.6"},
        "hardware": "1 x cpu",
        "started": "2025-01-01T00:00:00+00:00",
        "wall_seconds": 125.4,
        "config": {
            "base_classes": [0, 1, 2, 3, 4],
            "target_classes": [5, 6, 7, 8, 9],
            "shift": "unseen-classes",
            "num_target": 512,
            "steps": num_steps,
            "network": {"width": 256},
        },
        "methods": list(methods),
        "seeds": list(seeds),
        "num_evaluations": 100,
    }


def write_run(folder, rows, config, samples=("real", "base", *METHODS), event=(8, 8)):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        generator = np.random.default_rng(0)
        arrays = {name: generator.uniform(-1, 1, (64, *event)).astype(np.float32) for name in samples}
        np.savez(folder / "samples.npz", **arrays)
    return folder


def text_of(page):
    """The page without its pictures."""
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", page.read_text(encoding="utf-8"))


def notes_on_absence(page):
    found = re.search(r"<aside>(.*?)</aside>", text_of(page), re.DOTALL)
    return found.group(1) if found else ""


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory):
    return report.write_report(write_run(tmp_path_factory.mktemp("runs") / "001", run_rows(), run_config()))


# The table


def test_cells_are_the_hand_computed_numbers():
    curve = {0: 4.0, 10: 3.0, 20: 2.0, 30: 2.5}
    rows = [evaluation("plain", 0, step, w2, energy_distance=w2**2) for step, w2 in curve.items()]
    rows += [{"kind": "timing", "method": "plain", "seed": 0, "seconds": 6.0, "steps": 3000}]
    rows += [{"kind": "floor", "seed": 0, "w2": 1.5, "energy_distance": 0.5}, evaluation("base", 0, 0, 4.0)]
    base, plain, floor = summarise(rows)
    means = {key: cell.mean for key, cell in plain.cells.items()}
    assert means == pytest.approx(
        {
            "final_w2": 2.5,
            "best_w2": 2.0,
            "energy_distance": 6.25,
            "path_length": 8.75,
            "one_step_w2": 3.5,
            # Ranks 4, 3, 1, 2 against 1, 2, 3, 4: rho = 1 - 6 (9 + 1 + 4 + 4) / (4 (16 - 1)).
            "spearman_w2": -0.8,
            "spearman_energy_distance": -0.8,
            # Increments -1, -1, 0.5 around their mean -0.5.
            "variance_of_w2_increments": (0.25 + 0.25 + 1.0) / 3,
            "seconds_per_1000_steps": 2.0,
        },
        rel=1e-6,
    )
    assert all(cell.spread is None and cell.n == 1 for cell in plain.cells.values())
    assert (plain.seeds, plain.last_step) == ((0,), 30)
    assert {key: cell.mean for key, cell in floor.cells.items()} == {"final_w2": 1.5, "energy_distance": 0.5}
    assert set(base.cells) == {"final_w2", "energy_distance", "path_length", "one_step_w2"}
    assert base.cells["final_w2"].mean == 4.0


def test_spread_is_the_sample_deviation_over_seeds():
    finals = (2.0, 3.0, 7.0)
    rows = [
        evaluation("plain", seed, step, w2 + 10 - step)
        for seed, w2 in enumerate(finals)
        for step in (0, 5, 10)
    ]
    (row,) = summarise(rows)
    assert row.cells["final_w2"] == pytest.approx(Statistic(4.0, math.sqrt((4 + 1 + 9) / 2), 3))
    assert row.cells["spearman_w2"] == pytest.approx(Statistic(-1.0, 0.0, 3))


def test_a_seed_that_stopped_early_is_not_averaged_with_the_others():
    rows = [evaluation("plain", 0, step, 3.0) for step in (0, 10, 20)]
    rows += [evaluation("plain", 1, step, 100.0) for step in (0, 10)]
    (row,) = summarise(rows)
    assert row.seeds == (0,)
    assert row.cells["final_w2"] == Statistic(3.0, None, 1)


def test_a_repeated_step_counts_once_with_its_later_value():
    rows = [evaluation("plain", 0, step, w2) for step, w2 in ((0, 4.0), (10, 1.0), (10, 3.0), (20, 2.0))]
    (row,) = summarise(rows)
    assert row.cells["best_w2"].mean == 2.0
    assert row.cells["spearman_w2"].mean == pytest.approx(-1.0)


def test_a_diverged_run_is_not_a_number_and_not_left_out(tmp_path):
    rows = [*run_rows(["plain"]), evaluation("plain", 1, 200, math.nan)]
    table = summarise(rows)
    (row,) = [row for row in table if row.method == "plain"]
    assert math.isnan(row.cells["final_w2"].mean)
    assert math.isnan(row.cells["spearman_w2"].mean)
    write_summary(tmp_path, table)
    (saved,) = [
        row for row in json.loads((tmp_path / "summary.json").read_text()) if row["method"] == "plain"
    ]
    assert saved["final_w2"] == {"mean": "nan", "spread": "nan", "n": 2}
    sentences = report.absences(run_config(["plain"]), rows, table, ["plain"], {})
    assert [text for text in sentences if "seed" in text] == [
        "plain, seed 1: some evaluations are not finite; the run diverged."
    ]


def test_two_evaluations_have_no_stability():
    (row,) = summarise([evaluation("plain", 0, step, 3.0 - step) for step in (0, 1)])
    assert "final_w2" in row.cells
    assert not {"spearman_w2", "variance_of_w2_increments"} & set(row.cells)


def test_terminal_table_is_aligned_and_fits_110_columns():
    table = summarise(run_rows(), METHODS)
    text = render_text(table)
    blocks = text.strip().split("\n\n")
    assert max(map(len, text.splitlines())) <= 110
    for block in blocks:
        head, rule, *lines = block.splitlines()
        assert len(lines) == len(table)
        # Every number ends where its heading ends.
        assert {len(line) for line in (head, rule, *lines)} == {len(head)}
    assert text.count("±") > 20
    assert [column for column in COLUMNS if column.heading not in text] == []


def test_summary_files_hold_the_table(complete_page):
    table = {row.method: row for row in summarise(run_rows(), METHODS)}
    saved = {row["method"]: row for row in json.loads((complete_page.parent / "summary.json").read_text())}
    with (complete_page.parent / "summary.csv").open(newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert list(saved) == list(lines) == ["base", *METHODS, "floor"]
    for method, row in table.items():
        for key, cell in row.cells.items():
            assert Statistic(**saved[method][key]) == cell
            assert float(lines[method][f"{key}_spread"]) == cell.spread
    assert lines["floor"]["path_length_mean"] == ""
    head, _, base, *rest = (complete_page.parent / "summary.md").read_text().splitlines()
    assert head.startswith("| method | W₂ | best W₂ |")
    assert base.startswith("| base (step 0) | 4.")
    assert {line.count("|") for line in rest} == {head.count("|")}


# The files


def test_unfinished_last_line_is_dropped_and_a_broken_one_before_is_named(tmp_path):
    row = evaluation("plain", 0, 0, 3.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + '\n{"kind": "eval')
    assert read_metrics(tmp_path) == [row]
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval\n' + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "evaluation", "method": "plain"}\n')
    with pytest.raises(ValueError, match=r"line 1 .* lacks seed, step"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("missing", ["folder", "config.json", "metrics.jsonl"])
def test_command_names_what_is_missing(tmp_path, capsys, missing):
    folder = tmp_path / "run"
    if missing != "folder":
        write_run(folder, run_rows(["plain"]), run_config(["plain"]), ())
        (folder / missing).unlink()
    with pytest.raises(SystemExit) as exit_:
        report.main([str(folder)])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert str(folder if missing == "folder" else folder / missing) in message
    assert "Traceback" not in message


# The page


def test_page_is_self_contained(complete_page):
    text = text_of(complete_page)
    assert text.count("PICTURE") == 4
    assert not re.search(r"https?:|//[a-z]|<link|<script|@import|url\(", text)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) == {"PICTURE"}
    for name in ("convergence", "path_length", "cooling", "samples"):
        content = (complete_page.parent / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 300_000


def test_page_tells_what_was_done(complete_page):
    text = text_of(complete_page)
    opening = re.search(r'class="lead">(.*?)</p>', text).group(1)
    assert opening == (
        "A flow matching model, pretrained on the classes 0 to 4, was adapted to 512 images of the classes 5 to 9 "
        "(shift: unseen-classes). The methods gradual-linear, gradual-self-paced, plain and from-scratch were "
        "trained for 200 steps each with the seeds 0 and 1."
    )
    assert "python -m experiments.train digits --steps 200" in text
    for fact in (*METHODS, "network.width", "256", "0.10.2", "1 x cpu", "2 min 5 s", "NFE"):
        assert fact in text
    assert all(column.title in text for column in COLUMNS)
    assert "±" in text
    assert "<aside>" not in text
    assert "One seed" not in text


def test_page_says_when_there_is_one_seed():
    table = summarise(run_rows(["plain"], (0,)))
    text = render(run_config(["plain"], (0,)), table, ["plain"], {}, [])
    assert "The method plain was trained for 200 steps with the seed 0." in text
    assert "a calibration of the setting, not evidence" in text
    assert "±" not in text


def test_page_escapes_what_it_is_given():
    name = '<b>plain</b> & "x"'
    config = run_config([name]) | {
        "experiment": "<em>",
        "command": "train --name '<script>alert(1)</script>'",
        "<i>": {"a<b": "<u>"},
    }
    text = render(config, summarise(run_rows([name])), [name], {}, ["<s>"])
    for raw in ("<b>plain", "<em>", "<script", "<i>:", "<i>.", "a<b", "<u>", "<s>"):
        assert raw not in text
    for escaped in (
        "&lt;b&gt;plain&lt;/b&gt; &amp; &quot;x&quot;",
        "&lt;em&gt;",
        "&lt;script&gt;",
        "&lt;i&gt;.a&lt;b",
        "&lt;u&gt;",
        "&lt;s&gt;",
    ):
        assert escaped in text


def test_page_is_made_again_from_the_files_byte_for_byte(complete_page, capsys):
    first = complete_page.read_bytes()
    complete_page.unlink()
    report.main([str(complete_page.parent)])
    assert complete_page.read_bytes() == first
    assert str(complete_page) in capsys.readouterr().out


def test_interrupted_run_names_what_is_absent(tmp_path):
    rows = [
        row
        for row in run_rows(["gradual-linear", "plain"])
        if row["kind"] != "floor"
        and not (row["kind"] == "timing" and row["method"] == "plain")
        and not (row["method"] == "gradual-linear" and row["seed"] == 1 and row.get("step", 999) > 100)
        and not (row["method"] == "plain" and row.get("step", 0) > 160)
    ]
    page = report.write_report(write_run(tmp_path, rows, run_config(), ()))
    absent = notes_on_absence(page)
    for sentence in (
        "gradual-linear, seed 1: evaluated up to step 100 of 200; left out",
        "gradual-self-paced: no evaluations.",
        "plain: evaluated up to step 160 of 200.",
        "plain, seed 0: no timing",
        "from-scratch: no evaluations.",
        "There is no floor",
        "samples.npz is missing",
    ):
        assert sentence in absent
    assert "gradual-linear, seed 0" not in absent
    text = text_of(page)
    assert "The methods gradual-linear and plain were trained for up to 200 steps each" in text
    assert text.count("PICTURE") == 3
    assert not (tmp_path / "samples.png").exists()


def test_run_without_any_evaluation_still_has_a_page(tmp_path):
    page = report.write_report(write_run(tmp_path, [], {"methods": ["plain"]}, ()))
    text = text_of(page)
    assert "plain: no evaluations." in text
    assert "No method has been evaluated yet." in text
    assert text.count("PICTURE") == 0


def test_listing():
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing([0, 1]) == "0 and 1"
    assert listing([3, 4, 5]) == "3 to 5"
    assert listing([3, 5, 6]) == "3, 5 and 6"


# The figures


def test_curves_and_bands_are_the_recorded_numbers():
    rows = run_rows(["plain"], (0, 1, 2))
    figure = plots.convergence(rows, ["plain"])
    left, right = figure.axes
    line = left.lines[0]
    expected = np.asarray([3.0 + math.exp(-step / 20) + 0.01 for step in range(0, 201, 20)])
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    vertices = left.collections[0].get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(expected.max() + 0.01)
    assert vertices[:, 1].min() == pytest.approx(expected.min() - 0.01)
    base, floor = left.lines[1:]
    assert (base.get_linestyle(), base.get_ydata()[0]) == (":", pytest.approx(4.0))
    assert (floor.get_linestyle(), floor.get_ydata()[0]) == ("--", pytest.approx(2.8))
    assert right.get_yscale() == "log"
    assert "mean of 3 seeds" in figure.legends[0].get_title().get_text()


def test_a_method_has_its_colour_in_every_figure():
    rows = run_rows()
    legends = [
        {
            text.get_text(): to_hex(line.get_color())
            for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
        }
        for figure in (
            plots.convergence(rows, METHODS),
            plots.path_lengths(rows, METHODS),
            plots.cooling(rows, METHODS),
        )
        for legend in figure.legends
    ]
    colours = {method: plots.colour(method, METHODS).lower() for method in METHODS}
    assert len(set(colours.values())) == len(METHODS)
    shown = [{method: colour for method, colour in legend.items() if method in METHODS} for legend in legends]
    assert shown[0] == shown[1] == colours
    assert shown[2] == {method: colours[method] for method in METHODS[:2]}


def test_a_curve_that_leaves_the_axis_is_named():
    with_scratch = plots.convergence(run_rows(["plain", "from-scratch"]), ["plain", "from-scratch"]).axes[0]
    without = plots.convergence(run_rows(["plain"]), ["plain"]).axes[0]
    assert with_scratch.get_ylim()[1] < 9.0
    assert "off axis: from-scratch (9 at step 0)" in with_scratch.texts[0].get_text()
    assert "off axis" not in without.texts[0].get_text()
    low, high = without.get_ylim()
    assert low < 2.75
    assert high > 4.0


def test_cooling_shows_temperature_to_zero_and_both_weights():
    rows = run_rows(["gradual-linear", "plain"])
    rows.append(train("gradual-linear", 0, 200, 200) | {"effective_target_weight": 1.5})
    rows.append(train("gradual-linear", 1, 200, 200))
    left, right = plots.cooling(rows, ["gradual-linear", "plain"]).axes
    (temperature,) = left.lines
    as_set, reached = right.lines
    assert left.get_yscale() == "symlog"
    assert temperature.get_ydata()[0] == pytest.approx(19.0)
    assert temperature.get_ydata()[-1] == 0.0
    np.testing.assert_allclose(reached.get_ydata()[:-1], 0.9 * as_set.get_ydata()[:-1])
    assert right.get_ylim() == (0, 1.1)
    assert "1 values of ŵ off axis" in right.texts[0].get_text()
    assert plots.cooling(run_rows(["plain"]), ["plain"]) is None


def with_path_kl(rows):
    """As a log of today: a weight that rises with the step, and a path KL of 20 times its square."""

    def extended(row):
        weight = row["step"] / 250 if row["method"].startswith("gradual") else 0.95 * (row["step"] > 0)
        return row | {"reached_weight": weight, "path_kl": 20 * weight**2 + 0.1 * row["seed"]}

    return [extended(row) if row["kind"] == "evaluation" else row for row in rows]


def test_path_kl_is_drawn_by_step_and_by_weight():
    methods = ["gradual-linear", "plain"]
    left, right = path_kls(with_path_kl(run_rows(methods)), methods).axes
    steps, weights = np.arange(0, 201, 20), np.arange(0, 201, 20) / 250
    gradual, plain, base = left.lines
    np.testing.assert_allclose(gradual.get_xydata(), np.stack([steps, 20 * weights**2 + 0.05], 1))
    assert plain.get_ydata()[1] == pytest.approx(20 * 0.95**2 + 0.05)
    assert set(base.get_ydata()) == {0}
    gradual, parabola, plain, _ = right.lines
    np.testing.assert_allclose(gradual.get_xydata(), np.stack([weights, 20 * weights**2 + 0.05], 1))
    x, y = np.asarray(parabola.get_xydata()).T
    np.testing.assert_allclose(y, (20 * 0.8**2 + 0.05) * (x / 0.8) ** 2, atol=1e-12)
    assert (gradual.get_linestyle(), plain.get_linestyle()) == ("-", "None")


def test_path_kl_of_an_older_log_is_left_out_and_of_one_that_goes_on_begins_there():
    methods = ["gradual-linear", "plain"]
    rows = run_rows(methods)
    assert path_kls(rows, methods) is None
    mixed = [
        new if new["kind"] == "evaluation" and new["step"] >= 100 and new["seed"] == 1 else old
        for old, new in zip(rows, with_path_kl(rows), strict=True)
    ]
    left, right = path_kls(mixed, methods).axes
    assert list(left.lines[0].get_xdata()) == [100, 120, 140, 160, 180, 200]
    np.testing.assert_allclose(right.lines[0].get_xdata(), np.arange(100, 201, 20) / 250)
    (row,) = [row for row in summarise(mixed) if row.method == "plain"]
    assert row.cells["path_kl"] == pytest.approx(Statistic(20 * 0.95**2 + 0.1, None, 1))


def test_a_run_without_path_kl_says_why_once_and_a_diverged_sde_is_named():
    rows = [*run_rows(["plain"]), {"kind": "no path KL", "seed": 0, "reason": "the coupling is exact."}]
    sentences = report.absences(run_config(["plain"]), rows, summarise(rows), ["plain"], {})
    assert [text for text in sentences if "path KL" in text] == ["No path KL: the coupling is exact."]
    rows = with_path_kl(run_rows(["plain"]))
    assert not any("path KL" in text for text in report.absences({}, rows, summarise(rows), ["plain"], {}))
    diverged = next(
        row for row in rows if row["seed"] == 1 and row["kind"] == "evaluation" and row["step"] == 40
    )
    rows.append(diverged | {"path_kl": math.nan})
    (named,) = [t for t in report.absences({}, rows, summarise(rows), ["plain"], {}) if "path KL" in t]
    assert named == "plain, seed 1: some values of the path KL are not finite; the SDE diverged."


def test_panels_of_samples_share_one_scale_and_keep_their_images():
    generator = np.random.default_rng(0)
    samples = {name: generator.uniform(-1, 1, (64, 8, 8)) for name in ("real", "plain", "base")}
    figure = plots.sample_grids(samples, ["plain", "absent"])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["base, before fine-tuning", "plain", "real"]
    for ax, name in zip(figure.axes, ("base", "plain", "real"), strict=True):
        (image,) = ax.images
        assert image.get_clim() == (-1, 1)
        shown = np.asarray(image.get_array())
        # The eleventh image stands in the second row, third place; images are one pixel apart.
        np.testing.assert_allclose(shown[9:17, 18:26], samples[name][10], rtol=1e-6)


def test_colour_images_are_shown_and_vectors_are_not():
    samples = {"real": np.full((64, 8, 8, 3), 3.0), "plain": np.zeros((64, 5))}
    figure = plots.sample_grids(samples, ["plain"])
    (ax,) = figure.axes
    shown = ax.images[0].get_array()
    assert shown.shape == (71, 71, 3)
    assert shown.max() == 1.0
    assert plots.sample_grids({"plain": np.zeros((64, 5))}, ["plain"]) is None


def test_latents_are_shown_as_such_whatever_their_channels_and_images_as_they_are():
    rng = np.random.default_rng(0)
    for channels, shown in ((1, 1), (2, 1), (3, 3), (4, 3)):
        latents = 5 * rng.normal(size=(8, 4, 4, channels))
        top = np.quantile(np.abs(latents), 0.99)
        np.testing.assert_allclose(as_shown(latents, latents, "latents"), latents[..., :shown] / top)
        if channels in (1, 3):
            for kind in ("images", None):
                np.testing.assert_array_equal(as_shown(latents, latents, kind), latents)
    # What nobody has named: no images have four channels but those with transparency, which say so.
    np.testing.assert_allclose(as_shown(latents, latents, None), latents[..., :3] / top)
    pixels = np.array([[0.5, -0.5, 0.0, 1.0], [0.5, -0.5, 0.0, -1.0], [0.5, -0.5, 0.0, 0.0]]).reshape(
        1, 1, 3, 4
    )
    on_white = as_shown(pixels, pixels, "images")
    np.testing.assert_allclose(on_white[0, 0], [[0.5, -0.5, 0.0], [1.0, 1.0, 1.0], [0.75, 0.25, 0.5]])


def page_with(tmp_path, facts, settings, event=(8, 8, 3), **scores):
    config = run_config(["plain"], (0,)) | facts
    config["config"] |= settings
    rows = run_rows(["plain"], (0,))
    rows = [row | scores if row["kind"] == "evaluation" else row for row in rows]
    return text_of(report.write_report(write_run(tmp_path, rows, config, ("real", "base", "plain"), event)))


def test_the_page_says_whose_parameters_are_scored_and_in_which_space_samples_are_compared(tmp_path):
    plain = page_with(tmp_path / "plain", {}, {})
    assert "every evaluation of the raw parameters" in plain
    assert "with 100 evaluations of the drift (NFE) each; those called one-step with a single one" in plain
    assert "from -1 to 1" in plain.replace("&minus;", "-")
    for word in ("pixel", "latents", "features", "averaged parameters."):
        assert word not in plain
    facts = {"scores_average": True, "samples_are": "latents"}
    latents = page_with(tmp_path / "latents", facts, {})
    assert "every evaluation of the averaged parameters" in latents
    assert "All distances are between latents" in latents
    assert "Of latents the first three channels" in latents
    features = page_with(tmp_path / "features", facts, {"features": "mine:inception"})
    assert "are those of features of the samples, by mine:inception" in features
    assert "All distances are between latents" not in features


def test_the_page_says_what_samples_have_cost(tmp_path):
    guided = page_with(
        tmp_path / "guided",
        {},
        {"guidance": 4.0, "sampling_steps": 50, "tolerance": None},
        num_evaluations=100.0,
    )
    assert (
        "with 100 calls of the network (NFE) each, in 50 Euler steps of the drift guided with scale 4"
        in guided
    )
    assert "those called one-step with two" in guided
    assert '<th class="" scope="col">NFE</th>' in guided
    adaptive = page_with(
        tmp_path / "adaptive",
        {"num_evaluations": None},
        {"guidance": 1.0, "tolerance": 1e-5},
        num_evaluations=87.0,
    )
    assert "Its steps adapt to a tolerance of 1e-05" in adaptive
    assert '<td class="">87</td>' in adaptive
    assert "the column NFE has it" in adaptive
    assert "NFE</th>" not in page_with(tmp_path / "plain", {}, {})


def test_large_figures_are_written_coarser(tmp_path):
    images = np.random.default_rng(0).uniform(-1, 1, (64, 32, 32, 3))
    samples = {name: images for name in ("base", "plain", "real")}
    plots.save(plots.sample_grids(samples, ["plain"]), tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size < 300_000


def test_the_page_says_where_the_time_went_and_which_batches_were_left_out(tmp_path):
    rows = run_rows(methods=("plain",))
    parts = {"data": 1.0, "steps": 12.0, "start": 2.0, "evaluation": 4.0, "checkpoints": 0.5, "other": 0.5}
    of_plain = [row for row in rows if row["kind"] == "timing"]
    for row, factor in zip(of_plain, (1.0, 3.0), strict=True):
        row |= {"seconds": 13.0 * factor, "steps": 1000, "total": 20.0 * factor}
        row["parts"] = {part: factor * spent for part, spent in parts.items()}
    rows += [{"kind": "best", "method": "plain", "seed": seed, "best_step": 150 + seed} for seed in (0, 1)]
    rows += [
        {"kind": "skipped", "method": "plain", "seed": 1, "step": step, "reason": "nan"} for step in (3, 70)
    ]
    rows += [{"kind": "preempted", "method": "plain", "seed": 0, "step": 100}]
    cells = re.findall(r"<td>(.*?)</td>", time_section(rows, ["plain", "absent"]))
    assert cells == ["80.0", "26", "5 %", "60 %", "10 %", "20 %", "2 %", "2 %", "1", "2", "150, 151"]
    assert left_out(rows) == [
        "plain, seed 1: 2 batches were left out, since loss or gradient were not finite (steps 3, 70)."
    ]
    assert time_section(run_rows(), METHODS) == ""  # of an earlier version
    write_run(tmp_path, rows, run_config(methods=("plain",)), samples=("real", "base", "plain"))
    page = report.write_report(tmp_path)
    assert "<h2>Where the time went</h2>" in text_of(page)
    assert "2 batches were left out" in notes_on_absence(page)
