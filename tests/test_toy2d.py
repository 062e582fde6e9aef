"""The experiment in the plane: its laws, a tiny run with its pictures, its resume, and what it refuses."""

import io
import itertools
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from programs import call

import gft_jax as gft
from experiments import loop, planar, planar_animation, report, sample, train
from experiments.data import toy2d
from experiments.planar_figures import extent, moving_samples, path_panels, scatters, target_weights
from gft_jax.checkpoints import Checkpoints

LAWS = ("8-gaussians", "moons", "s-curve", "checkerboard")
TINY = shlex.split(
    "--methods gradual-linear --steps 6 --eval-every 2 --base-steps 3 --hidden 8 --depth 1 --batch-size 8 "
    "--num-target 16 --sampling-steps 3 --learning-rate 1e-3"
)
STEPS = [0, 2, 4, 6]


def many(law, num=400_000):
    return toy2d.draw(law, np.random.default_rng(7), num).astype(np.float64)


# The laws


NOISE = 0.0225
COVARIANCES = {  # variance of x, variance of y, covariance
    "8-gaussians": (4.5625, 4.5625, 0.0),
    "moons": (3.0 + NOISE, 9 / 4 - 4 / np.pi + NOISE, 1 / 2 - 4 / np.pi),
    "s-curve": (9 / 8 + NOISE, 27 / 8 + 3 / np.pi + NOISE, -3 / (4 * np.pi)),
    "checkerboard": (3.0, 3.0, 9 / 16),
}
WRONG = {"8-gaussians": 0.1 - 0.0625, "moons": 0.04 - NOISE, "s-curve": 0.04 - NOISE, "checkerboard": 0.04}


@pytest.mark.parametrize("law", LAWS)
def test_moments_are_those_of_the_closed_form(law):
    x, y = many(law).T

    def z_scores(expected, more=0.0):
        values = np.stack([x, y, x * x - expected[0] - more, y * y - expected[1] - more, x * y - expected[2]])
        return np.abs(values.mean(axis=1)) / values.std(axis=1) * np.sqrt(len(x))

    assert z_scores(COVARIANCES[law]).max() < 4
    # Standard deviations of 0.316 instead of 0.25, 0.2 instead of 0.15, and a side of 1.51 would be seen.
    assert z_scores(COVARIANCES[law], more=WRONG[law])[2:4].max() > 5
    assert abs(x).max() < 4.5
    assert abs(y).max() < 4.5


def test_eight_gaussians_are_equally_likely_and_each_has_its_variance():
    points = many("8-gaussians")
    which = np.round(np.arctan2(*points.T[::-1]) / (np.pi / 4)) % 8
    angle = which * np.pi / 4
    residual = points - 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose((residual**2).mean(axis=0), 0.0625, rtol=0.01)  # standard error 0.2 %
    counts = np.bincount(which.astype(int), minlength=8)
    assert np.abs(counts - len(points) / 8).max() < 4 * np.sqrt(len(points) * 7 / 64)


def test_checkerboard_fills_its_squares_evenly_and_no_others():
    points = many("checkerboard")
    cell = np.floor(points / 1.5).astype(int) + 2
    counts = np.zeros((4, 4), int)
    np.add.at(counts, tuple(cell.T), 1)
    row, column = np.indices((4, 4))
    assert (counts[(row + column) % 2 == 1] == 0).all()
    assert np.abs(counts[(row + column) % 2 == 0] - len(points) / 8).max() < 4 * np.sqrt(len(points) * 7 / 64)
    within = points / 1.5 + 2 - cell
    np.testing.assert_allclose(within.var(axis=0), 1 / 12, rtol=0.01)


def test_without_noise_moons_and_s_curve_are_their_curves(monkeypatch):
    monkeypatch.setattr(toy2d, "_NOISE", 0.0)
    points = many("moons", 2000)
    upper = np.hypot(points[:, 0] + 1.0, points[:, 1] + 0.5)
    lower = np.hypot(points[:, 0] - 1.0, points[:, 1] - 0.5)
    on_upper = np.isclose(upper, 2.0, atol=1e-5) & (points[:, 1] > -0.5 - 1e-5)
    on_lower = np.isclose(lower, 2.0, atol=1e-5) & (points[:, 1] < 0.5 + 1e-5)
    assert (on_upper | on_lower).all()
    assert abs(on_upper.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    x, y = many("s-curve", 2000).T / 1.5
    np.testing.assert_allclose(x**2 + (1 - abs(y)) ** 2, 1.0, atol=1e-5)
    assert (x * y <= 1e-5)[abs(y) < 1].all()  # towards the middle only one half of each circle


@pytest.mark.parametrize(("source", "target"), list(itertools.pairwise((*LAWS, LAWS[0]))))
def test_sets_are_disjoint_and_the_target_grows(source, target):
    data = toy2d.shifted_laws(source, target, 1000)
    *of_points, labels = data
    assert labels is None
    assert [len(points) for points in of_points] == [10_000, 1000, 512, 512]
    assert all(points.dtype == np.float32 for points in of_points)
    sets = [{point.tobytes() for point in points} for points in of_points]
    assert len(set.union(*sets)) == sum(map(len, of_points))
    few = toy2d.shifted_laws(source, target, 16)
    np.testing.assert_array_equal(few.target, data.target[:16])
    np.testing.assert_array_equal(few.held_out, data.held_out)


# A run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with one finished tiny run in it."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(toy2d, "NUM_HELD_OUT", 32)
        assert call(monkeypatch, train, "toy2d", *TINY) == 0
    return folder


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(toy2d, "NUM_HELD_OUT", 32)
    return workspace / "runs" / "toy2d"


def snapshots_of(run):
    return {path.relative_to(run): path.read_bytes() for path in (run / "snapshots").rglob("*.*")}


def test_a_run_keeps_samples_by_step_and_paths(inside):
    run = inside / "001"
    motion = planar.read_motion(run, ["gradual-linear", "plain"])
    (by_step,) = motion.snapshots.values()
    assert list(by_step) == STEPS
    with np.load(run / "samples.npz") as samples:
        np.testing.assert_array_equal(by_step[0], samples["base"])
        np.testing.assert_array_equal(by_step[6], samples["gradual-linear"])
    assert not np.array_equal(by_step[4], by_step[6])
    noise = jax.random.normal(jax.random.key(planar.PATH_SEED), (planar.NUM_PATHS, 2))
    assert list(motion.paths) == ["base", "gradual-linear"]
    for path in motion.paths.values():
        assert path.shape == (4, planar.NUM_PATHS, 2)
        np.testing.assert_array_equal(path[0], noise)
    loaded = gft.load(run, "gradual-linear")
    end = gft.sampling.sample_ode(loaded.drift, loaded.params, noise, num_steps=3).x
    np.testing.assert_allclose(motion.paths["gradual-linear"][-1], end, rtol=1e-5, atol=1e-6)
    assert not np.allclose(motion.paths["base"][-1], end, rtol=1e-5, atol=1e-6)
    assert list(motion.absences(["gradual-linear"])) == []
    assert list(motion.absences(["gradual-linear", "plain"])) == [
        "plain: no samples along the training.",
        "No paths of plain.",
    ]


def test_the_report_shows_the_motion_and_is_made_again_byte_for_byte(inside, tmp_path):
    run = inside / "001"
    page = (run / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 1
    assert page.count("data:image/png;base64,") == 7
    assert 'alt="Animation: from step to step' in page
    assert "pretrained on 8-gaussians, was adapted to 16 points of moons. The method" in page
    assert "<h1>toy2d: 8-gaussians to moons</h1>" in page
    assert "<aside>" not in page
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.png", "*.gif", "*.html"))
    report.write_report(copy)
    for made in ("report.html", "cooling.gif", "scatter.png", "moving_samples.png", "trajectories.png"):
        assert (copy / made).read_bytes() == (run / made).read_bytes()
    (copy / "snapshots" / "gradual-linear" / "000002.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"000002\.npz cannot be read"):
        report.write_report(copy)
    shutil.rmtree(copy / "snapshots")
    (copy / "trajectories.npz").unlink()
    text = report.write_report(copy).read_text()
    assert "gradual-linear: no samples along the training." in text
    assert "No paths of base, gradual-linear." in text


def test_the_animation_has_a_frame_for_every_evaluation(inside):
    with Image.open(inside / "001" / "cooling.gif") as animation:
        assert animation.n_frames == len(STEPS)
        assert animation.info["loop"] == 0
        frames = []
        for index in range(animation.n_frames):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB")))
            assert animation.info["duration"] == (2400 if index == 3 else 160)
    assert all((frame[0, 0] == 255).all() for frame in frames)
    assert all((one != other).any() for one, other in itertools.pairwise(frames))


def test_an_interrupted_run_ends_with_the_same_snapshots(inside, monkeypatch, capsys):
    """Interrupted at step 6 with a checkpoint of step 2: steps 4 and 6 are sampled again."""
    out = inside / "interrupted"
    arguments = ("toy2d", *TINY, "--out", out)
    monkeypatch.setattr(train, "write_report", lambda run: run)
    row, save = loop.Loop._row, Checkpoints.save

    def interrupted(self, kind, **values):
        if (self.method, kind, values.get("step")) == ("gradual-linear", "evaluation", 6):
            raise KeyboardInterrupt
        return row(self, kind, **values)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_row", interrupted)
        patch.setattr(Checkpoints, "save", lambda self, step, *args: step > 2 or save(self, step, *args))
        assert call(monkeypatch, train, *arguments) == 130
    before = snapshots_of(out)
    assert len(before) == 4
    (out / "snapshots" / "gradual-linear" / "000004.npz").unlink()
    assert call(monkeypatch, train, *arguments, "--resume") == 0
    assert "continues at step 2" in capsys.readouterr().out
    assert snapshots_of(out) == before
    assert snapshots_of(inside / "001") == before


def test_samples_of_a_run_are_drawn_and_pictured(inside, monkeypatch):
    assert call(monkeypatch, sample, inside / "001", "--num-samples", planar.NUM_PATHS, "--num-steps", 3) == 0
    folder = inside / "001" / "samples" / f"gradual-linear-euler3-{planar.NUM_PATHS}-noise0"
    assert np.load(folder / "samples.npy").shape == (planar.NUM_PATHS, 2)
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")


# The pictures


def spread(seed, num=40):
    return np.random.default_rng(seed).normal(size=(num, 2)).astype(np.float32)


def offsets(ax):
    return [np.asarray(collection.get_offsets()) for collection in ax.collections]


def test_scatters_show_all_samples_over_the_real_ones():
    samples = {"real": spread(0), "base": spread(1), "plain": spread(2), "odd": np.zeros((4, 5))}
    figure = scatters(samples, ["plain", "odd"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["base", "plain", "real"]
    for ax, name in zip(figure.axes, ("base", "plain", "real"), strict=True):
        np.testing.assert_array_equal(offsets(ax)[-1], samples[name])
        if name != "real":
            np.testing.assert_array_equal(offsets(ax)[0], samples["real"])
        assert ax.get_xlim() == ax.get_ylim() == figure.axes[0].get_xlim()
    assert scatters({"real": np.zeros((3, 8, 8))}, []) is None


def test_panels_hold_all_points_but_far_outliers():
    points = spread(0, 500)
    assert 1.0 < extent([points]) / np.abs(points).max() < 1.1
    assert extent([points, np.full((2, 2), 50.0)]) < 1.5 * extent([points])


def test_paths_run_from_noise_to_samples():
    paths = {"base": np.stack([spread(0, 5), spread(1, 5), spread(2, 5)])}
    (ax,) = path_panels(paths, None, ["plain"]).axes
    lines, start, end = ax.collections
    np.testing.assert_array_equal(lines.get_segments()[3], paths["base"][:, 3])
    np.testing.assert_array_equal(start.get_offsets(), paths["base"][0])
    np.testing.assert_array_equal(end.get_offsets(), paths["base"][-1])
    assert path_panels({}, None, ["plain"]) is None


def test_moving_samples_stand_under_their_step_with_their_weight():
    methods = ["plain", "gradual-linear"]
    snapshots = {
        method: {step: spread(step + index) for step in range(0, 101, 10)}
        for index, method in enumerate(methods)
    }
    del snapshots["plain"][100]  # a run that was interrupted
    rows = [
        {"kind": "train", "method": method, "seed": seed, "step": step, "temperature": temperature}
        for seed in (0, 3)
        for step in range(10, 101, 10)
        for method, temperature in (("plain", 0.0), ("gradual-linear", (100 - step) / 100 + seed))
    ]
    weights = target_weights(rows, methods, seed=0)
    assert list(weights) == ["gradual-linear"]
    assert weights["gradual-linear"][50] == pytest.approx(1 / 1.5)
    figure = moving_samples(snapshots, weights, None, methods)
    axes = np.reshape(figure.axes, (2, 6))
    assert [ax.get_title(loc="left") for ax in axes[0]] == [
        f"step {step}" for step in (0, 20, 40, 60, 80, 100)
    ]
    assert [[text.get_text() for text in ax.texts] for ax in axes[1, :3]] == [[], ["w = 0.56"], ["w = 0.62"]]
    assert not any(ax.texts for ax in axes[0])
    np.testing.assert_array_equal(offsets(axes[1, 3])[0], snapshots["gradual-linear"][60])
    assert not axes[0, 5].collections


def test_the_animation_thins_its_frames_and_needs_a_method_that_cools(monkeypatch):
    monkeypatch.setattr(planar_animation, "MAX_FRAMES", 3)
    snapshots = {"gradual-linear": {step: spread(step) for step in range(8)}}
    weights = {"gradual-linear": {step: step / 7 for step in range(1, 8)}}
    content = planar_animation.cooling_animation(snapshots, weights, None, ["gradual-linear"])
    with Image.open(io.BytesIO(content)) as animation:
        assert animation.n_frames == 3
    one = {"gradual-linear": {0: spread(0)}}
    assert planar_animation.cooling_animation(one, weights, None, ["gradual-linear"]) is None
    assert planar_animation.cooling_animation(snapshots, {}, None, ["gradual-linear"]) is None


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "8-gaussians"], "--target is 8-gaussians; allowed is another law than the source"),
        (["--num-target", "10001"], "--num-target is 10001; allowed is 1 to 10000"),
        (["--source", "spiral"], "checkerboard"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "toy2d", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moons", "moons", 5), "both moons"),
        (("moons", "s-curve", 0), "num_target is 0; there are 1 to 10000"),
        (("moons", "spiral", 5), "law is 'spiral'; there are 8-gaussians, moons"),
    ],
)
def test_laws_that_are_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy2d.shifted_laws(*arguments)
