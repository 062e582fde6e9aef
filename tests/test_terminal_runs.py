"""The terminal experiment: densities of the laws, the laws in between, its figure, what it refuses, and a tiny run."""

import json
import shlex

import jax
import numpy as np
import pytest
from programs import call
from samples import z_score

import gft_jax as gft
from experiments import loop, train
from experiments.configs.domains import defaults_for
from experiments.configs.terminal import DEFAULTS, Terminal
from experiments.data import toy2d
from experiments.data.digits import NUM_TARGET, labelled_digits, shifted_digits
from experiments.terminal.bench import effective_share
from experiments.terminal.figures import end_law
from experiments.terminal.ratio import WEIGHTS
from experiments.terminal.tempered import TemperedLaws

LAWS = ("8-gaussians", "moons", "s-curve", "checkerboard", "normal")
TINY = shlex.split(
    "--steps 4 --eval-every 2 --base-steps 3 --hidden 8 --depth 1 --batch-size 16 --sampling-steps 4 --ratio-steps 30 "
    "--num-target 40 --num-base-samples 60 --rollout-steps 4 --methods terminal-target terminal-base terminal-reward"
)


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Laws and data


@pytest.mark.parametrize("law", LAWS)
def test_densities_are_those_of_the_draws(law):
    """Integrals of density times a function, over a grid, beside means over draws; a law 3 % wider is told apart."""
    side = 0.06
    line = np.arange(-7.5, 7.5, side) + side / 2
    cells = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    points = toy2d.draw(law, np.random.default_rng(5), 200_000).astype(np.float64)
    density = np.exp(np.concatenate([toy2d.log_density(law, part) for part in np.split(cells, len(line))]))
    assert density.sum() * side**2 == pytest.approx(1, abs=2e-3)

    def functions(x):
        return np.cos(2 * x[:, 0]), np.cos(2 * x[:, 1] + 1), np.cos(x[:, 0] - 2 * x[:, 1]), (x**2).sum(axis=1)

    z = [
        abs(z_score(of_draws, (density * of_cells).sum() * side**2))
        for of_draws, of_cells in zip(functions(points), functions(cells), strict=True)
    ]
    assert max(z) < 5
    wider = [
        abs(z_score(a, b.mean())) for a, b in zip(functions(points), functions(1.03 * points), strict=True)
    ]
    assert max(wider) > 8


def test_the_laws_in_between_are_weighted_ones_of_either_end():
    """Means under ``q^w p^(1-w)`` by draws of p with weights ``(q / p)^w``; at another w they would not agree."""
    laws = TemperedLaws("normal", "moons")
    points = toy2d.draw("normal", np.random.default_rng(3), 8_000).astype(np.float64)
    ratio = toy2d.log_density("moons", points) - toy2d.log_density("normal", points)
    for weight in (0.1, 0.3):
        weights = np.exp(weight * ratio)
        expected = weights @ ratio / weights.sum()
        error = np.sqrt(np.sum((weights * (ratio - expected)) ** 2)) / weights.sum()

        def z(at):
            x = laws.draw(at, 4000).astype(np.float64)
            mean = np.mean(toy2d.log_density("moons", x) - toy2d.log_density("normal", x))
            return abs(mean - expected) / error  # noqa: B023

        assert z(weight) < 4
        assert min(z(0.8 * weight), z(1.2 * weight)) > 6
    assert np.array_equal(laws.draw(0.3, 50), laws.draw(0.3, 50))
    ends = [laws.draw(weight, 20_000) for weight in (0.0, 1.0)]
    for end, law in zip(ends, ("normal", "moons"), strict=True):
        others = toy2d.draw(law, np.random.default_rng(4), 20_000)
        assert max(abs(z_score(end[:, axis], others[:, axis].mean())) for axis in (0, 1)) < 5
        assert abs(end.var() / others.var() - 1) < 0.03


def test_of_the_rare_classes_the_base_has_a_tenth():
    images, labels = labelled_digits()
    data = shifted_digits("rare-classes", NUM_TARGET["rare-classes"])
    of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    base, target, held_out = (
        np.array([of[image.tobytes()] for image in part]) for part in (data.base, data.target, data.held_out)
    )
    assert set(target) == set(held_out) == {5, 6, 7, 8, 9}
    assert set(base) == set(range(10))
    assert (base < 5).sum() == (labels < 5).sum()
    assert (base >= 5).sum() == (labels >= 5).sum() // 10
    # The same picture twice among 1797 would be a leak; there are none.
    assert not {image.tobytes() for image in data.held_out} & {
        image.tobytes() for part in (data.base, data.target) for image in part
    }
    with pytest.raises(ValueError, match="num_target is 401; the shift rare-classes has 1 to 400"):
        shifted_digits("rare-classes", 401)


# Settings


def test_defaults_are_those_of_the_domain_that_is_named():
    assert defaults_for(DEFAULTS, ["terminal"]) == Terminal()
    assert defaults_for(DEFAULTS, ["terminal", "--domain=digits"]) == DEFAULTS["digits"]
    for config in DEFAULTS.values():
        config.check()
        assert len(config.data().target) == config.num_target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--path", "brownian-bridge"], "--path is brownian-bridge; allowed is linear or trigonometric"),
        (["--coupling", "exact"], "--coupling is exact; allowed is independent: a coupling of weighted rows"),
        (["--num-target", "19"], "--num-target is 19; allowed is 20 to 10000"),
        (["--domain", "digits", "--num-target", "401"], "--num-target is 401; allowed is 20 to 400"),
        (["--num-base-samples", "3"], "--num-base-samples is 3; allowed is at least 20"),
        (["--rollout-steps", "1"], "--rollout-steps is 1; allowed is at least 2"),
        (["--ratio-steps", "0"], "--ratio-steps is 0; allowed is at least 1"),
        (["--target", "normal"], "--target is normal; allowed is another law than the source"),
        (["--shift", "rotation"], "--shift is rotation; allowed is only with --domain digits"),
        (
            ["--domain", "digits", "--source", "moons"],
            "--source is moons; allowed is only with --domain toy2d",
        ),
        (["--methods", "terminal"], "terminal-target"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "terminal", *arguments) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).split())
    assert not (tmp_path / "runs").exists()


# The figure


def test_theeffective_share_is_that_of_the_weights():
    """Kish's: (sum w)^2 / (n sum w^2), from the two means that the objective logs."""
    w = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    stats = {"ratio_weight": (w**2).sum(1) / w.sum(1), "inverse_ratio_weight": 3 / w.sum(1)}
    assert effective_share(stats)["effective_share"] == pytest.approx((36 / 42 + 1) / 2)
    assert effective_share({"loss": w[0]}) == {}


def test_the_figure_shows_distances_by_step_and_sizes_by_weight():
    rows = [
        {
            "kind": "effective sample size",
            "seed": 0,
            "step": step,
            "target_weight": w,
            "target_rows": w,
            "base_rows": 1 - w,
        }
        for step, w in enumerate((0.2, 0.8))
    ]
    for step, (w, share) in enumerate(((0.3, 0.5), (0.9, 0.7))):
        rows += [
            {
                "kind": "train",
                "method": "terminal-target",
                "seed": 0,
                "step": step,
                "target_weight": w,
                "effective_share": share,
            }
        ]
        rows += [
            {
                "kind": "evaluation",
                "method": name,
                "seed": 0,
                "step": step,
                "end_law_energy_distance": 1.0 + step + i,
            }
            for i, name in enumerate(("plain", "terminal-target"))
        ]
    methods = ["plain", "terminal-target"]
    left, right = end_law(rows, methods).axes
    drawn = [line.get_xydata().tolist() for line in left.lines]
    assert [[0, 1], [1, 2]] in drawn
    assert [[0, 2], [1, 3]] in drawn
    target, base, dots = (line.get_xydata().tolist() for line in right.lines)
    assert target == [[0.2, 0.2], [0.8, 0.8]]
    assert base == [[0.2, 0.8], [0.8, pytest.approx(0.2)]]
    assert dots == [[0.3, 0.5], [0.9, 0.7]]
    images = [row for row in rows if row["kind"] != "evaluation"]
    (only,) = end_law(images, methods).axes
    assert len(only.lines) == 3
    assert end_law(rows[2:], methods) is None


# The program


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with one finished tiny run in it."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert call(monkeypatch, train, "terminal", *TINY) == 0
    return folder


@pytest.mark.slow
def test_a_run_leaves_ratio_distances_and_parameters(workspace):
    run = workspace / "runs" / "terminal" / "001"
    config, rows = json.loads((run / "config.json").read_text()), rows_of(run)
    assert 0 < config["ratio_log_loss"] < 0.8
    assert config["ratio_rmse_halfway"] > 0
    sizes = [row for row in rows if row["kind"] == "effective sample size"]
    assert [row["target_weight"] for row in sizes] == list(WEIGHTS)
    assert sizes[-1]["target_rows"] == pytest.approx(1)
    assert sizes[0]["base_rows"] > 0.9
    for name in config["methods"]:
        evaluated = [row for row in rows if row["kind"] == "evaluation" and row["method"] == name]
        assert [row["step"] for row in evaluated] == [0, 2, 4]
        assert len({row["end_law_energy_distance"] for row in evaluated}) == 3
        trained = [row for row in rows if row["kind"] == "train" and row["method"] == name]
        assert [0 < row.get("effective_share", 0) <= 1 for row in trained] == 2 * [name != "terminal-reward"]
    page = (run / "report.html").read_text()
    assert "normal to moons" in page
    assert "exp(w l)" in page
    assert (run / "end_law.png").stat().st_size > 10_000
    loaded = [gft.load(run, name).params for name in config["methods"]]
    assert not np.allclose(*(jax.tree.leaves(params)[0] for params in loaded[:2]))


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_numbers(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    whole, out = workspace / "runs" / "terminal" / "001", workspace / "interrupted"
    row = loop.Loop._row

    def interrupted(self, kind, **values):
        if (self.method, kind, values.get("step")) == ("terminal-reward", "evaluation", 4):
            raise KeyboardInterrupt
        return row(self, kind, **values)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_row", interrupted)
        assert call(monkeypatch, train, "terminal", *TINY, "--out", out) == 130
    assert call(monkeypatch, train, "terminal", *TINY, "--out", out, "--resume") == 0
    assert "terminal-reward (seed 0): continues at step 2" in capsys.readouterr().out

    def numbers(run):
        return [row for row in rows_of(run) if row["kind"] != "timing"]

    assert numbers(out) == numbers(whole)


@pytest.mark.slow
def test_laws_that_do_not_overlap_are_told(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    shift = shlex.split(
        "--domain digits --shift inversion --num-target 300 --num-base-samples 300 --ratio-steps 300"
    )
    arguments = [*TINY[:-4], *shift, "--methods"]
    assert call(monkeypatch, train, "terminal", *arguments, "terminal-base") == 0
    run = workspace / "runs" / "terminal" / "002"
    page = (run / "report.html").read_text()
    assert "the two laws hardly overlap" in page
    assert "terminal: inversion" in page
    (finished,) = [r for r in rows_of(run) if r["kind"] == "evaluation" and r.get("step") == 4]
    assert "end_law_energy_distance" not in finished
