"""What a few_steps run is wired from: costs, stages, objectives, pairs, scores, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments import train
from experiments.configs.few_steps import DEFAULTS, FewSteps
from experiments.data.shifted import ShiftedData
from experiments.evaluator import NOISE_SEED
from experiments.few_steps.bench import FewStepsBench
from experiments.few_steps.figures import by_evaluations, few_step_panels
from experiments.few_steps.methods import FEW_STEP_METHODS, with_stages
from experiments.few_steps.scores import (
    EVALUATIONS,
    by_average,
    by_euler,
    energy_at,
    few_step_samples,
    few_step_scores,
    w2_at,
)
from gft_jax.pairing import row_keys

CONFIG = FewSteps(
    steps=100,
    eval_every=10,
    num_pairs=60,
    pair_steps=10,
    hidden=4,
    depth=1,
    batch_size=8,
    sampling_steps=3,
    cooling_fraction=0.5,
)
SPEED = np.array([2.0, -1.0], np.float32)


@pytest.fixture(scope="module")
def bench():
    """A bench of thirty points in each set."""
    rows = np.random.default_rng(0).normal(size=(4, 30, 2)).astype(np.float32)
    return FewStepsBench(CONFIG, ShiftedData(*rows))


def test_methods_come_after_those_that_they_continue():
    assert with_stages(("plain", "reflow-again", "reflow")) == (
        "plain",
        "gradual-half",
        "reflow",
        "reflow-again",
    )


def test_cost_counts_training_base_derivative_and_pairs():
    """100 steps of 8 rows at 3: 2400. By hand at 40 steps, of which the gradual ones cool for half of their own."""
    assert CONFIG.steps_of("plain") == 100
    assert CONFIG.cost_at("plain", 40) == 40 * 8 * 3
    # 3.5 on the average of its steps, so 2400 / 28 = 85.7 of them, whole tens; cooling for 40.
    assert CONFIG.steps_of("gradual-linear") == 80
    assert CONFIG.cost_at("gradual-linear", 20) == 20 * 8 * 4
    assert CONFIG.cost_at("gradual-linear", 80) == 80 * 8 * 3 + 40 * 8
    # Half of the rows with a derivative of two: 4, so 75 steps; with the base 4.5, so 66.
    assert CONFIG.steps_of("mean-flow") == 70
    assert CONFIG.cost_at("mean-flow", 40) == 40 * 8 * 4
    assert CONFIG.steps_of("gradual-mean-flow") == 60
    assert CONFIG.cost_at("gradual-mean-flow", 60) == 60 * 8 * 4 + 30 * 8
    # Half of the cost for what it starts from, 600 for the pairs, the rest at 3.
    half = CONFIG.cost_at("gradual-half", CONFIG.steps_of("gradual-half"))
    assert (CONFIG.steps_of("gradual-half"), half) == (40, 40 * 8 * 3 + 20 * 8)
    assert CONFIG.steps_of("reflow") == 20  # (1200 - 600) / 24 = 25
    assert CONFIG.cost_at("reflow", 0) == half + 600
    assert CONFIG.cost_at("reflow-again", 10) == CONFIG.cost_at("reflow", 20) + 600 + 240


@pytest.mark.parametrize("config", DEFAULTS.values(), ids=DEFAULTS)
def test_by_default_all_methods_cost_what_plain_costs(config):
    """Less than one interval between evaluations below it, and never above."""
    config.check()
    whole = config.cost_at("plain", config.steps)
    for name in config.stages:
        if name not in ("gradual-half", "reflow-again"):
            cost = config.cost_at(name, config.steps_of(name))
            interval = 2 * 5 * config.batch_size * config.eval_every
            assert whole - interval < cost <= whole, name


@pytest.mark.parametrize(
    ("name", "measured_as"), [("plain", 3.0), ("mean-flow", 4.0), ("gradual-mean-flow", 5.0)]
)
def test_what_a_row_is_said_to_cost_is_what_the_compiler_counts(name, measured_as):
    """Operations of gradient and targets over those of a forward evaluation, of a network that is nearly all products.

    The base is asked on both branches of a condition, of which the compiler counts the dearer.
    """
    config = dataclasses.replace(CONFIG, hidden=256, depth=3, batch_size=64)
    data = ShiftedData(*np.zeros((4, 64, 2), np.float32))
    bench = FewStepsBench(config, data)
    base = bench.fresh_params(0)
    params, objective = bench.start(name, base), bench.method(name).objective
    batch = gft.Batch(jnp.zeros((64, 2)), jnp.ones((64, 2)), row_keys(0, 0, 64))

    def loss(params, batch, beta):
        rows = objective.prepare(params, params, (), batch, beta)
        return jax.grad(lambda p: jnp.mean(objective.loss(p, params, rows, beta).loss))(params)

    def forward(params, x):
        return bench.velocity(name)(params, x[:, 0], x, None)

    def flops(program, *arguments):
        return jax.jit(program).lower(*arguments).compile().cost_analysis()["flops"]

    ratio = flops(loss, params, batch, 1.0) / flops(forward, params, batch.x0)
    assert ratio == pytest.approx(measured_as, rel=0.12)
    assert measured_as == config.cost_at(name, 10) / (10 * 64)


def test_average_velocities_start_as_the_base_and_are_trained_as_told(bench):
    """Before training, loss and target of gradual-mean-flow at infinite temperature are those of the base: no error."""
    base = bench.fresh_params(1)
    x0, x1 = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 2)), jnp.float32)
    params = bench.start("mean-flow", base)
    t = jnp.linspace(0, 1, 8)
    np.testing.assert_array_equal(
        bench.velocity("mean-flow")(params, t, x0, None), bench.velocity("plain")(base, t, x0, None)
    )
    batch = gft.Batch(x0, x1, row_keys(0, 0, 8))
    powers = {}
    for name, beta in (
        ("gradual-mean-flow", np.inf),
        ("mean-flow", 0.0),
        ("gradual-mean-flow-adaptive", 0.0),
    ):
        objective = bench.method(name).objective
        rows = objective.prepare(params, params, (), batch, jnp.asarray(beta))
        powers[name] = objective.loss(params, params, rows, jnp.asarray(beta)).loss
    # Rows with s = t: the blended velocity is the base's.
    np.testing.assert_allclose(powers["gradual-mean-flow"][1::2], 0, atol=1e-10)
    error = powers["mean-flow"]
    np.testing.assert_allclose(powers["gradual-mean-flow-adaptive"], error / (error + 1e-3), rtol=1e-5)


def test_methods_cool_within_their_own_steps(bench):
    for name in ("gradual-linear", "gradual-mean-flow"):
        cooling, steps = bench.method(name).cooling, CONFIG.steps_of(name)
        temperatures = [float(cooling.temperature(cooling.init(), step)) for step in range(steps)]
        assert temperatures[0] == pytest.approx(19.0)  # w = 0.05
        assert temperatures[steps // 2 - 1] > 0 == temperatures[steps // 2]


def test_one_coupling_for_the_methods_that_are_named_so(bench):
    """Exact pairs are closer than random ones; the other methods have the same pairs as plain."""
    base = bench.fresh_params(0)
    batches = {
        name: bench.stream(name, 3, base).batch(0)
        for name in ("plain", "mean-flow", "gradual-coupled", "gradual-mean-flow-coupled")
    }
    np.testing.assert_array_equal(batches["plain"].x0, batches["mean-flow"].x0)
    np.testing.assert_array_equal(batches["gradual-coupled"].x0, batches["gradual-mean-flow-coupled"].x0)
    cost = {name: float(jnp.sum((batch.x1 - batch.x0) ** 2)) for name, batch in batches.items()}
    assert cost["gradual-coupled"] < 0.9 * cost["plain"]
    assert bench._first_coupled() == "gradual-coupled"


def test_reflow_learns_from_pairs_of_what_it_continues(bench, tmp_path):
    """Pairs are Euler's in ten steps, by the parameters that are given; a folder of others is refused."""

    class Folder:
        path, is_writer = tmp_path, False

    params = bench.fresh_params(5)
    bench.make_pairs(Folder, "reflow", 0, params)
    batch = bench.stream("reflow", 0, params).batch(0)
    ends = gft.sampling.sample_ode(bench.drift, params, batch.x0, num_steps=10).x
    np.testing.assert_allclose(batch.x1, ends, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "pairs" / "reflow-seed0" / "pairs.json").is_file()
    with pytest.raises(ValueError, match="model"):
        bench.make_pairs(Folder, "reflow", 0, bench.fresh_params(6))


def test_scores_by_number_of_evaluations():
    """A velocity 2t: Euler in n steps ends (n - 1) / n along the way, the average velocity at its end in one."""
    noise = jax.random.normal(jax.random.split(jax.random.key(NOISE_SEED))[0], (40, 2))
    held_out = np.asarray(noise) + SPEED
    data = ShiftedData(held_out, held_out, held_out, held_out)

    def velocity(params, t, x, cond=None, /):
        return 2 * t[:, None] * SPEED * jnp.ones_like(x)

    def average(params, t, s, x, cond=None, /):
        return (t + s)[:, None] * SPEED * jnp.ones_like(x)

    def of_drift(params):
        return {"w2": -1.0, "one_step_w2": -1.0, "retention": 7.0}, np.zeros(())

    for flow, misses in ((by_euler(velocity), True), (by_average(average), False)):
        scores, samples = few_step_scores(flow, data, of_drift)({})
        for count in EVALUATIONS:
            missed = np.linalg.norm(SPEED) / count if misses else 0.0
            assert scores[w2_at(count)] == pytest.approx(missed, abs=1e-3)
        assert scores["w2"] == scores[w2_at(100)]
        assert scores["one_step_w2"] == scores[w2_at(1)]
        assert scores["energy_distance"] == scores[energy_at(100)]
        assert scores["retention"] == 7.0
        few = few_step_samples(flow, data, {}, 5)
        np.testing.assert_allclose(few[-1], samples[:5], rtol=1e-6)
        np.testing.assert_allclose(few[0], np.asarray(noise)[:5] + (0 if misses else SPEED), atol=1e-5)


def test_bad_settings_are_refused_by_their_flags():
    for changes, message in (
        ({"methods": ("plain", "l2-sp")}, "--methods is l2-sp; allowed is any of plain"),
        ({"same_time": 1.0}, r"--same-time is 1.0; allowed is in \[0, 1\)"),
        ({"batch_size": 6, "same_time": 0.75}, "--batch-size is 6; allowed is a multiple of 4"),
        ({"num_pairs": 0}, "--num-pairs is 0"),
        ({"num_pairs": 10_000}, "--steps 100 leave no 10 steps .* for reflow"),
        ({"base_every": 2}, "--base-every is 2"),
        ({"shift": "rotation"}, "--shift is rotation; allowed is only with --domain digits"),
        ({"num_target": 20_000}, "--num-target is 20000"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **changes).check()
    # Four devices have two rows each, and 0.75 needs four.
    with pytest.raises(ValueError, match=r"a multiple of 16: with --same-time 0\.75, 4 on a device"):
        dataclasses.replace(CONFIG, same_time=0.75).check_devices(4)


def test_defaults_of_the_domains_are_those_of_the_command_line():
    assert train.parse(["few_steps"]) == DEFAULTS["toy2d"]
    assert train.parse(["few_steps", "--domain", "digits"]) == DEFAULTS["digits"]


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


def test_every_method_says_what_it_is_made_of():
    """Names tell: -coupled ones couple, gradual ones cool, mean-flow ones have two times."""
    for name, kind in FEW_STEP_METHODS.items():
        assert kind.coupled == name.endswith("-coupled")
        assert kind.gradual == name.startswith("gradual")
        assert kind.two_times == ("mean-flow" in name)
        assert (kind.after is not None) == name.startswith("reflow")
