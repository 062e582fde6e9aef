"""The programs on models and runs with average velocities: what is sampled, and what the cards are of."""

import json
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import call

import gft_jax as gft
from experiments import evaluate, sample
from experiments.configs.toy2d import Toy2d
from experiments.images.networks import pretrained
from experiments.run_folder import open_run
from gft_jax.evaluation import AVERAGE_VELOCITY
from gft_jax.loading import describe_model, init_params, save_model

ONCE = gft.networks.ResidualMLP(hidden=8, depth=1)
TWICE = ONCE.clone(two_times=True)
AVERAGE = gft.drifts.two_times(gft.drifts.from_linen(TWICE))
AVERAGED = ("gradual-linear", "from-scratch")


def random_params(module, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), (2,)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of the plane: one method of one time, two of two times."""
    methods = ("plain", *AVERAGED)
    settings = Toy2d(seeds=(1,), methods=methods, num_target=40, sampling_steps=4)
    folder = open_run(settings, tmp_path_factory.mktemp("runs"), {"methods": methods, "seeds": [1]}).path
    describe_model(folder, ONCE, (2,), two_time_methods=AVERAGED)
    kept = {"base": ONCE, "plain-seed1": ONCE, "gradual-linear-seed1": TWICE, "from-scratch-seed1": TWICE}
    for seed, (name, module) in enumerate(kept.items()):
        gft.checkpoints.save_params(folder / "params" / name, random_params(module, seed))
    return folder


def noise(num):
    return jax.random.normal(jax.random.key(0), (num, 2))


def test_samples_are_by_steps_of_the_average_velocity(tmp_path, monkeypatch, capsys):
    params = random_params(TWICE, 5)
    save_model(tmp_path, TWICE, params, (2,))
    folder = tmp_path / "samples"
    for flags, name, num_steps in (
        ((), "base-average1-7-noise0", 1),
        (("--num-steps", "3"), "base-average3-7-noise0", 3),
    ):
        arguments = ("--solver", "average", "--num-samples", 7, *flags)
        assert call(monkeypatch, sample, tmp_path, *arguments) == 0
        assert f"7 samples, {num_steps} evaluations of the average velocity: " in capsys.readouterr().out
        x = noise(7)
        for t, s in zip(range(num_steps), range(1, num_steps + 1), strict=True):
            times = jnp.full(7, t / num_steps), jnp.full(7, s / num_steps)
            x += AVERAGE(params, *times, x) / num_steps
        np.testing.assert_allclose(np.load(folder / name / "samples.npy"), x, rtol=1e-5, atol=1e-5)
    assert call(monkeypatch, sample, tmp_path, "--num-samples", 7) == 0
    assert "7 samples, 100 evaluations of the drift: " in capsys.readouterr().out
    euler = gft.sampling.sample_ode(gft.drifts.instantaneous(AVERAGE), params, noise(7)).x
    drawn = np.load(folder / "base-euler100-7-noise0" / "samples.npy")
    np.testing.assert_allclose(drawn, euler, rtol=1e-5, atol=1e-5)
    assert np.abs(drawn - np.load(folder / "base-average1-7-noise0" / "samples.npy")).max() > 0.05


def test_an_average_velocity_that_nothing_has_learned_is_refused(run, tmp_path, monkeypatch, capsys):
    save_model(tmp_path / "once", ONCE, random_params(ONCE, 0), (2,))
    for folder, flags, message in (
        (run, (), "plain of .* has none: give --method, one of gradual-linear, from-scratch"),
        (run, ("--method", "base"), "base of .* has none: give --method, one of gradual-linear"),
        (tmp_path / "once", (), "base of .* has none: give another solver"),
        (
            run,
            ("--method", "gradual-linear", "--target-weight", "0.5"),
            "--target-weight and --guidance change",
        ),
        (run, ("--method", "gradual-linear", "--guidance", "2"), "--target-weight and --guidance change"),
        (run, ("--method", "gradual-linear", "--num-steps", "0"), "num_steps must be >= 1"),
    ):
        assert call(monkeypatch, sample, folder, "--solver", "average", *flags) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (run / "samples").exists()


@pytest.mark.slow
def test_cards_are_of_the_velocity_and_of_steps_of_the_average(run, monkeypatch):
    calls = []
    report_card = gft.evaluation.report_card

    def watched(drift, params, base_params, *args, **options):
        calls.append((drift, params, base_params, options["average"]))
        return report_card(drift, params, base_params, *args, **options)

    monkeypatch.setattr(gft.evaluation, "report_card", watched)
    flags = shlex.split("--num-samples 12 --nfe-solvers euler --nfe-steps 1 2 --num-halves 2")
    assert call(monkeypatch, evaluate, run, *flags) == 0
    (plain, *of_plain), (gradual, *of_gradual), (scratch, *of_scratch) = calls
    assert of_plain[-1] is None
    assert gradual is scratch is not plain  # what is compiled once serves both
    assert of_gradual[-1] is of_scratch[-1] is not None
    x, t = noise(12), jnp.linspace(0.1, 0.9, 12)
    velocity = plain(of_plain[1], t, x)
    np.testing.assert_array_equal(gradual(of_gradual[1], t, x), velocity)
    for name, params in (("gradual-linear", of_gradual[0]), ("from-scratch", of_scratch[0])):
        jax.tree.map(np.testing.assert_array_equal, params, gft.load(run, name).params)
    cards = {
        name: json.loads((run / "cards" / f"{name}-seed1" / "card.json").read_text())
        for name in ("plain", *AVERAGED)
    }
    for name, card in cards.items():
        points = {(point["solver"], point["num_steps"]): point["w2"] for point in card["nfe_curve"]["points"]}
        numbers = {measure["name"]: measure["value"] for measure in card["measures"]}
        assert numbers["path_kl"] > 0
        averaged = name in AVERAGED
        solvers = ("Euler", AVERAGE_VELOCITY) if averaged else ("Euler",)
        assert list(points) == [(solver, num) for solver in solvers for num in (1, 2)]
        assert numbers["one_step_w2"] == points[solvers[-1], 1]
        assert any("one step W2 is of one step of the average" in note for note in card["notes"]) == averaged
    assert cards["gradual-linear"]["nfe_curve"] != cards["from-scratch"]["nfe_curve"]


def test_a_method_of_two_times_is_a_base_of_two_times(run):
    assert pretrained(run, "gradual-linear").module == TWICE
    assert pretrained(run, "plain").module == pretrained(run, "base").module == ONCE
