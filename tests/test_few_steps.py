"""What a few_steps run is wired from: costs, stages, objectives, pairs, scores, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments import train
from experiments.configs.few_steps import DEFAULTS, FewSteps
from experiments.configs.settings import Controls
from experiments.data.shifted import ShiftedData
from experiments.evaluator import NOISE_SEED
from experiments.few_steps.bench import FewStepsBench
from experiments.few_steps.methods import FEW_STEP_METHODS, with_stages
from experiments.few_steps.scores import (
    EVALUATIONS,
    by_average,
    by_euler,
    energy_at,
    few_step_scores,
    sampler_of,
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
    """100 steps of 8 rows at 3: 2400, in ten intervals. By hand, the gradual ones cooling for half of their own."""
    assert CONFIG.steps_of("plain") == 100
    assert CONFIG.cost_at("plain", 40) == 40 * 8 * 3
    # 3.5 on the average of its steps, so 2400 / 28 = 85.7 of them, in ten intervals of 8; cooling for 40.
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
    # Eight evaluations of the base for each row that is paired by its samples: 11.5, so 26.1 steps.
    by_base = dataclasses.replace(CONFIG, coupling="base-exact")
    assert by_base.steps_of("gradual-coupled") == 20
    assert by_base.cost_at("gradual-coupled", 10) == 10 * 8 * 12
    assert by_base.steps_of("gradual-linear") == 80


@pytest.mark.parametrize("config", DEFAULTS.values(), ids=DEFAULTS)
def test_by_default_all_methods_cost_what_plain_costs(config):
    """Within half a percent of it and never above; half and once and a half of it for those that say so."""
    config.check()
    whole = config.cost_at("plain", config.steps)
    for name in config.stages:
        share = {"gradual-half": 0.5, "reflow-again": 1.5}.get(name, 1.0)
        cost = config.cost_at(name, config.steps_of(name))
        assert (share - 0.0065) * whole < cost <= share * whole, name


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
    # Another round, and another seed, start from other noise.
    bench.make_pairs(Folder, "reflow-again", 0, params)
    bench.make_pairs(Folder, "reflow", 1, params)
    starts = {row.tobytes() for pairs in bench._pairs.values() for row in np.asarray(pairs.x0)}
    assert len(starts) == 3 * CONFIG.num_pairs


def test_scores_by_number_of_evaluations():
    """A velocity 2t: Euler in n steps ends (n - 1) / n along the way, the average velocity at its end in one."""
    noise = jax.random.normal(jax.random.split(jax.random.key(NOISE_SEED))[0], (40, 2))
    held_out = np.asarray(noise) + SPEED
    data = ShiftedData(held_out, 3 * held_out, held_out, held_out)

    def velocity(params, t, x, cond=None, /):
        return 2 * t[:, None] * SPEED * jnp.ones_like(x)

    def average(params, t, s, x, cond=None, /):
        return (t + s)[:, None] * SPEED * jnp.ones_like(x)

    def of_drift(params):
        of_other_samples = ("w2", "one_step_w2", "energy_distance", "diversity", "training_energy_distance")
        return {**dict.fromkeys(of_other_samples, -9.0), "reached_weight": 0.5, "retention": 7.0}, np.zeros(
            ()
        )

    for flow, misses in ((by_euler(velocity), True), (by_average(average), False)):
        sample = sampler_of(flow, data)
        scores, samples = few_step_scores(sample, data, of_drift)({})
        for count in EVALUATIONS:
            missed = np.linalg.norm(SPEED) / count if misses else 0.0
            assert scores[w2_at(count)] == pytest.approx(missed, abs=1e-3)
        assert scores["w2"] == scores[w2_at(100)]
        assert scores["one_step_w2"] == scores[w2_at(1)]
        assert scores["energy_distance"] == scores[energy_at(100)]
        assert scores["diversity"] == pytest.approx(gft.metrics.mean_pairwise_distance(samples))
        assert scores["training_energy_distance"] == gft.metrics.energy_distance(samples, 3 * held_out)
        assert scores["retention"] == 7.0
        assert "reached_weight" not in scores
        np.testing.assert_allclose(samples, held_out - (SPEED / 100 if misses else 0), atol=1e-4)
        np.testing.assert_allclose(sample({})[1], np.asarray(noise) + (0 if misses else SPEED), atol=1e-5)


def test_bad_settings_are_refused_by_their_flags():
    for changes, message in (
        ({"methods": ("plain", "l2-sp")}, "--methods is l2-sp; allowed is any of plain"),
        ({"same_time": 1.5}, "--same-time is 1.5; allowed is above 0 and below 1"),
        ({"same_time": 0.0}, "--same-time is 0.0; allowed is above 0 and below 1"),
        ({"same_time": 0.123}, "--same-time: same_time must be a fraction of a denominator"),
        (
            {"coupling": "independent"},
            "--coupling is independent; allowed is any other, for the methods named",
        ),
        (
            {"methods": ("plain",), "coupling": "sinkhorn"},
            "--coupling is sinkhorn, of 1 batches; allowed is exact",
        ),
        (
            {"methods": ("plain",), "coupled_batches": 4},
            "--coupling is exact, of 4 batches; allowed is exact, of 1",
        ),
        ({"path": "trigonometric"}, "--path is trigonometric; allowed is linear, whose lines"),
        (
            {"path": "brownian-bridge", "methods": ("mean-flow",)},
            "--path is brownian-bridge; allowed is linear, trig",
        ),
        ({"controls": Controls(l2_sp=1.0)}, "--controls is changed"),
        ({"log_every": 5}, "--log-every is 5"),
        (
            {"methods": ("mean-flow",), "profile": (70, 90)},
            "--profile is 70 90; allowed is up to 70, the steps of",
        ),
        ({"batch_size": 6, "same_time": 0.75}, "--batch-size is 6; allowed is a multiple of 4"),
        ({"num_pairs": 0}, "--num-pairs is 0"),
        ({"num_pairs": 10_000}, "leave reflow no step .* less often, or fewer --num-pairs or --pair-steps"),
        (
            {"steps": 10, "eval_every": 1, "methods": ("gradual-linear",)},
            "leave gradual-linear no step .* less often$",
        ),
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


def test_every_method_says_what_it_is_made_of():
    """Names tell: -coupled ones couple, gradual ones cool, mean-flow ones have two times."""
    for name, kind in FEW_STEP_METHODS.items():
        assert kind.coupled == name.endswith("-coupled")
        assert kind.gradual == name.startswith("gradual")
        assert kind.two_times == ("mean-flow" in name)
        assert (kind.after is not None) == name.startswith("reflow")
