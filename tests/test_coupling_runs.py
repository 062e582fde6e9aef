"""The comparison of couplings: its laws, its table, and a tiny one end to end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import call
from samples import z_score

import gft_jax as gft
from experiments.couplings import __main__ as couplings
from experiments.couplings import comparison, scratch, scratch_flow, scratch_page, table
from experiments.data.eight_to_moons import eight_gaussians, moons
from experiments.files import read_arrays

# Laws


def test_eight_gaussians_have_the_moments_of_the_mixture():
    x, cond = eight_gaussians(jax.random.split(jax.random.key(0), 20_000))
    x = np.asarray(x, np.float64)
    assert cond is None
    octants = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    angle = octants * (np.pi / 4)
    from_centre = x - 5 * np.stack(
        [np.cos(angle), np.sin(angle)], axis=1
    )  # neighbours are seven deviations apart
    for axis in from_centre.T:
        assert abs(z_score(axis, 0.0)) < 4
        assert abs(z_score(axis**2, 0.1**0.5)) < 4
        assert abs(z_score(axis**2, 0.1)) > 40  # power: what the name of torchcfm's argument promises
    shares = np.bincount(octants) / len(x)
    assert np.abs(shares - 1 / 8).max() < 4 * (1 / 8 * 7 / 8 / len(x)) ** 0.5


def test_moons_lie_on_two_half_circles_moved_along_the_diagonal():
    x = moons(np.random.default_rng(0), 1000).astype(np.float64)
    assert x.shape == (1000, 2)
    shift = np.linspace(0.0, 0.6, 601)
    moved = x[:, None] + 1.0 - shift[:, None]  # undone for every shift that may have been drawn
    outer = np.abs(np.linalg.norm(moved, axis=-1) - 3.0)
    inner = np.abs(np.linalg.norm(moved - [3.0, 1.5], axis=-1) - 3.0)
    nearest = np.minimum(outer.min(axis=1), inner.min(axis=1))
    assert nearest.max() < 2e-3
    assert not np.array_equal(np.sort(x[:500, 0]), np.sort(moons(np.random.default_rng(0), 500)[:, 0]))


# Table


def test_interval_of_the_mean_covers_at_its_level():
    rng = np.random.default_rng(0)
    intervals = [table.interval(list(rng.normal(2.0, 0.7, 5))) for _ in range(1000)]
    covered = np.mean([low <= 2.0 <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 1000) ** 0.5)
    assert table.interval([1.0]) is None


def test_a_reference_touches_the_interval_the_range_or_nothing():
    values = [1.0, 1.1, 1.2, 1.1, 1.6]  # interval of the mean: 0.91 to 1.49
    assert scratch_page.agreement(values, (0.5, 0.95)) == "touches the interval of the mean"
    assert (
        scratch_page.agreement(values, (1.55, 1.8))
        == "outside the interval of the mean, within the range of the seeds"
    )
    assert scratch_page.agreement(values, (1.7, 1.8)) == "**outside the range of the seeds**"
    assert (
        scratch_page.agreement([1.0], (1.0, 2.0))
        == "outside the interval of the mean, within the range of the seeds"
    )


# Numbers


@pytest.mark.slow
def test_a_flow_is_measured_on_points_of_its_seed(monkeypatch):
    monkeypatch.setattr(scratch_flow, "NUM_POINTS", 40)
    monkeypatch.setattr(scratch_flow, "NUM_PATHS", 3)
    shift = jnp.array([3.0, 4.0])

    def drift(params, t, x, cond):  # in the whole time by the shift, not at all at first
        return params * 2 * t[:, None] * shift

    measured = {seed: scratch_flow.measured(drift, jnp.ones(()), seed) for seed in (0, 1)}
    numbers, paths = measured[0].numbers, measured[0].arrays["paths"]
    starts = eight_gaussians(jax.random.split(jax.random.fold_in(jax.random.key(20_230_202), 0), 40))[0]
    generator = np.random.default_rng([20_230_202, 0])
    data, others = moons(generator, 40), moons(generator, 40)
    least = gft.metrics.w2(starts, data)
    assert numbers["one_step_w2"] == pytest.approx(least, rel=1e-5)
    assert numbers["w2"] == pytest.approx(gft.metrics.w2(starts + 0.99 * shift, data), rel=1e-5)
    assert numbers["floor"] == pytest.approx(gft.metrics.w2(others, data), rel=1e-5)
    assert numbers["path_length"] == pytest.approx(0.99 * 5, rel=1e-4)
    energy = 25 * np.mean((2 * np.arange(100) / 100) ** 2)
    assert numbers["normalised_path_energy"] == pytest.approx(abs(energy - least**2) / least**2, rel=1e-3)
    np.testing.assert_allclose(paths[-1], starts[:3] + 0.99 * shift, atol=1e-5)
    assert not {name for name, value in measured[1].numbers.items() if value == numbers[name]} - {
        "path_length"
    }


# The program


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was_and_refuses_other_settings(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(scratch_flow, "NUM_POINTS", 40)
    monkeypatch.setattr(scratch_flow, "NUM_DATA", 512)
    out = tmp_path / "runs"
    given = ("scratch", "--seeds", "0", "1", "--couplings", "independent", "--steps", "3", "--out", str(out))
    assert call(monkeypatch, couplings, *given, "--page", str(tmp_path / "page")) == 0
    first, second = (out / f"independent-seed{seed}.json" for seed in (0, 1))
    contents = first.read_bytes(), second.read_bytes()
    assert contents[0] != contents[1]
    whole = (tmp_path / "page" / "couplings.md").read_bytes()
    assert (tmp_path / "page" / "couplings.png").stat().st_size > 10_000
    second.unlink()
    trainings = []
    train = scratch.trained
    monkeypatch.setattr(scratch, "trained", lambda *args: trainings.append(args[1]) or train(*args))
    assert call(monkeypatch, couplings, *given, "--page", str(tmp_path / "page")) == 0
    assert trainings == [1]
    assert (first.read_bytes(), second.read_bytes()) == contents
    assert (tmp_path / "page" / "couplings.md").read_bytes() == whole

    capsys.readouterr()
    longer = [*given[:-3], "4", *given[-2:]]
    assert call(monkeypatch, couplings, *longer) == 2
    assert (
        "is of a run with steps = 3, this one has 4: name another folder by --out" in capsys.readouterr().err
    )
    assert call(monkeypatch, couplings, "scratch", "--seeds", "1", "1") == 2
    assert "--seeds is (1, 1); allowed is one or more, each once" in capsys.readouterr().err
    assert (first.read_bytes(), second.read_bytes()) == contents


def test_no_run_is_made_beside_a_file_that_does_not_fit(tmp_path):
    made = []

    def make(name):
        made.append(name)
        return comparison.Outcome({"w2": float(len(made))}, {"paths": np.arange(3)})

    def finish(*names, steps=5):
        runs = {name: comparison.Run({"steps": steps}, functools.partial(make, name)) for name in names}
        return comparison.finish(tmp_path, runs)

    assert finish("a") == {"a": {"w2": 1.0}}
    with pytest.raises(ValueError, match=r"a\.json is of a run with steps = 5, this one has 6"):
        finish("b", "a", steps=6)
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "b.npz").touch()
    with pytest.raises(ValueError, match=r"b\.json is not JSON: .*remove it, and its run is made again"):
        finish("c", "a", "b")
    assert made == ["a"]
    with pytest.raises(
        ValueError, match=r"b\.npz cannot be read .*remove it, and start the same command again"
    ):
        read_arrays(tmp_path / "b.npz")
    (tmp_path / "b.npz").unlink()
    (tmp_path / "a.npz").unlink()
    assert finish("a", "b") == {"a": {"w2": 2.0}, "b": {"w2": 3.0}}
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["paths"], np.arange(3))
