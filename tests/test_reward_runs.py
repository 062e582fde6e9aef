"""The reward experiment: names and settings, tilted laws, its figure, and a tiny run end to end."""

import functools
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
from experiments.configs.reward import DEFAULTS, STRENGTHS, Reward
from experiments.methods import PATHS
from experiments.reward import diagnostics, figures, problem, program
from experiments.reward.evaluation import Scorer
from experiments.reward.methods import at_strength, factor_of, objective_of
from experiments.reward.names import parse_method
from experiments.reward.tilting import TiltedLaws
from gft_jax.finetuning import StepInfo

TINY = shlex.split(
    "--steps 4 --eval-every 2 --base-steps 3 --hidden 8 --depth 1 --batch-size 8 --sampling-steps 4 "
    "--methods am-2@0.5 memoryless@1"
)


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Names and settings


def test_names_say_method_truncation_power_and_strength():
    am = parse_method("am-3")
    assert (am.family, am.truncation, am.power) == ("am", 3, 2.0)
    assert parse_method("am-full-p1.5")[1:] == ("am", None, 1.5)
    assert parse_method("draft-5")[1:3] == ("draft", 5)
    for long, short in (
        ("am-02", "am-2"),
        ("am-2-p2.0", "am-2"),
        ("am-full-p03", "am-full-p3"),
        ("draft-03", "draft-3"),
    ):
        assert parse_method(long) == parse_method(short)
        assert parse_method(long).name == short
    runs = Reward(methods=("am-3@0.25", "orw")).runs()
    assert runs == ("am-3@0.25", "orw@0.3", "orw@1", "orw@3")
    for domain, config in DEFAULTS.items():
        config.check()
        assert config.methods == tuple(STRENGTHS[domain])


def test_defaults_are_those_of_the_domain_that_is_named():
    assert defaults_for(DEFAULTS, ["reward"]) == Reward()
    assert defaults_for(DEFAULTS, ["reward", "--domain", "toy2d"]) == Reward()
    for given in (["--domain", "digits"], ["--domain=digits"], ["--domain", "toy2d", "--domain", "digits"]):
        assert defaults_for(DEFAULTS, ["reward", *given]) == DEFAULTS["digits"]
    assert DEFAULTS["digits"].hidden != DEFAULTS["toy2d"].hidden


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "am-3@0"], "names am-3@0, whose strength is 0; allowed is a finite number above 0"),
        (["--methods", "orw@-1"], "whose strength is -1"),
        (["--methods", "am-3@"], "whose strength is empty"),
        (["--methods", "am-3-p1@1"], "whose power is 1; allowed is a finite number above 1"),
        (["--methods", "am-30@1"], "trains the last 30 steps; allowed is 1 to --sampling-steps, 20"),
        (["--methods", "draft-0@1"], "trains the last 0 steps"),
        (["--methods", "memorless"], "Did you mean 'memoryless'?"),
        (["--methods", "am-7"], "needs a strength: am-7@0.5"),
        (["--methods", "am-3", "am-3@0.3"], "allowed is each run once"),
        (["--methods", "am-3-p2", "am-03"], "allowed is each run once"),
        (["--methods", "am-3@1_0"], "whose strength is 1_0"),
        (["--domain", "digits", "--target-class", "10"], "--target-class is 10; allowed is a class, 0 to 9"),
        (["--domain", "digit"], "digits"),
        (["--target-class", "5"], "--target-class is 5; allowed is only with --domain digits"),
        (["--path", "brownian-bridge"], "--path is brownian-bridge; allowed is linear or trigonometric"),
        (["--curvature", "0"], "--curvature is 0.0; allowed is a finite number above 0"),
        (["--centre", "nan", "0"], "allowed is two finite numbers"),
        (["--adjoint-limit", "1"], "--adjoint-limit is 1.0; allowed is above 1"),
        (["--eval-every", "70"], "--eval-every is 70; allowed is a divisor of steps=300"),
        (["--sampling-step", "3"], "--sampling-steps"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, train, "reward", *arguments) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).split())
    assert not (tmp_path / "runs").exists()


# Parts


@pytest.mark.parametrize("name", ["am-3-p3", "memoryless"])
def test_a_strength_in_the_rows_is_the_strength_of_the_method(name):
    """The objective at lam = 1 with reward r / lam has the prepared rows of the library's at lam, on the run's path."""
    config = Reward(sampling_steps=4, hidden=4, depth=1, path="trigonometric")
    reward = gft.rewards.quadratic(np.array([1.0, 0.0], np.float32))
    module = gft.networks.ResidualMLP(hidden=4, depth=1)
    drift, path = gft.drifts.from_linen(module), PATHS[config.path]()
    params = gft.loading.init_params(module, jax.random.key(0), (2,))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    stream = gft.pairing.source_batches(gft.pairing.standard_normal((2,)), batch_size=6, seed=0)
    method, strength = parse_method(name), 0.2
    ours = objective_of(method, config, drift, path, reward)
    theirs = {
        "am-3-p3": lambda: gft.objectives.adjoint_matching(
            drift,
            reward,
            cost_weight=strength,
            cost=gft.control_costs.norm_power(3),
            num_steps=4,
            truncation=3,
        ),
        "memoryless": lambda: gft.objectives.memoryless_adjoint_matching(
            drift, reward, cost_weight=strength, path=gft.paths.trigonometric(), num_steps=4
        ),
    }[name]()
    batch = at_strength(stream, method, strength).many(0, 1)
    batch = jax.tree.map(lambda leaf: leaf[0], batch)
    rows = [
        jax.jit(objective.prepare)(params, params, (), given, 0.0)
        for objective, given in ((ours, batch), (theirs, stream.batch(0)))
    ]
    np.testing.assert_allclose(rows[0].control, rows[1].control, rtol=1e-5)
    assert np.abs(rows[1].control).max() > 0.1


@pytest.mark.parametrize(
    ("norms", "gradients", "finite", "message"),
    [
        ([1, 9, 9], [1, 1, 1], [True, True, True], None),
        ([1, 11, 9], [1, 1, 1], [True, True, True], "explodes at step 42: its mean norm is 11, more than"),
        ([1, 11, np.nan], [1, 1, np.nan], [True, True, False], "explodes at step 42: its mean norm is 11"),
        ([1, np.nan, 1], [1, 1, 1], [True, True, True], "explodes at step 42: its mean norm is nan"),
        (
            [1, np.nan, 1],
            [1, np.inf, 1],
            [True, False, False],
            "the reward's gradient is not finite at step 42",
        ),
        # Of this the loop speaks, since it comes first.
        ([1, 1, 99], [1, 1, 1], [False, True, True], None),
    ],
)
def test_what_stops_a_run_is_told_at_its_first_step(norms, gradients, finite, message):
    stats = {"adjoint_norm": np.array(norms, float), "reward_gradient_norm": np.array(gradients, float)}
    infos = StepInfo(np.ones(3), np.ones(3), np.zeros(3), np.array(finite), stats)
    check = functools.partial(diagnostics.check_adjoints, 10.0, infos, 40)
    if message is None:
        check("am-3@1", "advice")
        return
    with pytest.raises(loop.Stopped, match=message):
        check("am-3@1", "advice")


def test_the_judge_has_seen_none_of_the_images_of_the_reward(monkeypatch):
    seen = []

    def noted(images, labels, num_steps, seed):
        seen.append({image.tobytes() for image in images})
        return lambda x: np.zeros((len(x), 10), np.float32)

    monkeypatch.setattr(problem, "train_classifier", noted)
    made = problem.problem_of(DEFAULTS["digits"])
    trainer, judge = seen
    held_out = {image.tobytes() for image in made.real}
    assert min(map(len, (trainer, judge, held_out))) > 50
    assert not trainer & judge
    assert not held_out & (trainer | judge)


def test_the_factor_of_a_strength():
    assert factor_of(parse_method("am-3"), 0.2) == factor_of(parse_method("memoryless"), 0.2) == 5.0
    assert factor_of(parse_method("orw"), 0.2) == 0.2


def test_the_distance_between_laws_is_from_other_noise():
    """From the same noise the base would be at no distance from itself; an unbiased estimate is about zero."""
    config = Reward(sampling_steps=4, hidden=4, depth=1)
    plane = problem.problem_of(config)
    module = gft.networks.ResidualMLP(hidden=4, depth=1)
    params = gft.loading.init_params(module, jax.random.key(0), (2,))
    scorer = Scorer(gft.drifts.from_linen(module), params, plane, 4)
    found = scorer.evaluate_at(None)(params)[0]["base_energy_distance"]
    same = gft.metrics.energy_distance(scorer.base_samples, scorer.base_samples)
    assert found != pytest.approx(same, abs=1e-6)
    assert abs(found) < 0.03


def test_tilted_laws_of_a_normal_law_are_normal():
    """p = N(0, 1), r = -(x - 2)^2 / 2: mean 2 / (1 + lam), variance lam / (1 + lam), mean reward from both."""
    x = np.random.default_rng(0).normal(size=(100_000, 1))
    laws = TiltedLaws(x, -((x[:, 0] - 2) ** 2) / 2)
    for lam in (0.5, 2.0):
        drawn = laws.draw(lam, 2000)
        mean, variance = 2 / (1 + lam), lam / (1 + lam)
        assert abs(z_score(drawn[:, 0], mean)) < 4
        assert abs(z_score((drawn[:, 0] - mean) ** 2, variance)) < 4
        assert abs(z_score(drawn[:, 0], 0.0)) > 8  # power: the law that was tilted
        reward = -(variance + (mean - 2) ** 2) / 2
        assert laws.mean_reward(lam) == pytest.approx(reward, rel=0.02)
        assert laws.strength_of(reward) == pytest.approx(lam, rel=0.05)
    assert laws.draw(1e-4, 100) is None
    assert laws.strength_of(-5.0) is None  # lower than that of the law itself
    assert laws.strength_of(0.1) is None


def made_up(method, seed, **scores):
    return {"kind": "evaluation", "method": method, "seed": seed, "step": 4, **scores}


def test_the_figure_has_a_line_for_each_method_over_its_strengths_and_seeds():
    rows = [
        made_up("base", 0, reward=-6.0, displacement=0.0, base_energy_distance=0.0, vendi=9.0),
        {"kind": "floor", "seed": 0, "reward": -5.5, "vendi": 9.5},
        *(
            {
                "kind": "tilted",
                "seed": 0,
                "step": i,
                "strength": s,
                "reward": -s,
                "base_energy_distance": 1 / s,
            }
            for i, s in enumerate((1.0, 2.0, 4.0))
        ),
    ]
    methods = ["am-3@0.5", "am-3@2", "orw@1"]
    for index, method in enumerate(methods):
        for seed in (0, 1):
            rows.append(
                made_up(
                    method,
                    seed,
                    reward=-1.0 - index - 0.1 * seed,
                    displacement=3.0 - index + seed,
                    base_energy_distance=1.0,
                    vendi=5.0 + index,
                )
            )
    figure = figures.pareto(rows, methods)
    shown = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in shown] == [
        "Reward against displacement",
        "Reward against distance between laws",
        "Diversity against reward",
    ]
    am, orw = shown[0].containers
    np.testing.assert_allclose(am[0].get_xydata(), [[3.5, -1.05], [2.5, -2.05]])
    np.testing.assert_allclose(orw[0].get_xydata(), [[1.5, -3.05]])
    bars = [segment for collection in am[2] for segment in collection.get_segments()]
    np.testing.assert_allclose(sorted(np.ptp(bar, axis=0).tolist() for bar in bars)[0], [0.0, 0.1])
    np.testing.assert_allclose(sorted(np.ptp(bar, axis=0).tolist() for bar in bars)[-1], [1.0, 0.0])
    assert am[0].get_color() != orw[0].get_color()
    legend = figure.axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()][:2] == ["am-3", "orw"]
    assert "smallest to largest" in legend.get_title().get_text()
    (tilted,) = [line for line in shown[1].lines if str(line.get_label()).startswith("tilted")]
    np.testing.assert_allclose(tilted.get_xydata(), [[1.0, -1.0], [0.5, -2.0], [0.25, -4.0]])
    assert figures.pareto(rows[:2], methods) is None


def test_samples_stand_from_the_weakest_strength_to_the_strongest():
    methods = ["am-3@0.5", "am-3@2", "orw@1", "orw@3", "memoryless@1"]
    points = {name: np.random.default_rng(0).normal(size=(9, 2)) for name in [*methods[:4], "base", "real"]}
    titles = [ax.get_title() or ax.get_title(loc="left") for ax in figures.by_strength(points, methods).axes]
    assert [title for title in titles if title] == ["base", "real", "am-3@2", "am-3@0.5", "orw@1", "orw@3"]
    assert figures.by_strength({"base": points["base"]}, methods) is None
    assert figures.by_strength({"orw@1": np.zeros((3, 5))}, methods) is None


# The program


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with one finished tiny run in it."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert call(monkeypatch, train, "reward", *TINY) == 0
    return folder


@pytest.mark.slow
def test_a_run_leaves_report_scores_and_parameters(workspace):
    run = workspace / "runs" / "reward" / "001"
    rows, page = rows_of(run), (run / "report.html").read_text()
    base = next(row for row in rows if row.get("method") == "base")
    assert base["displacement"] == 0
    assert base["retention"] < 1e-6
    for name in ("am-2@0.5", "memoryless@1"):
        evaluated = [row for row in rows if row["kind"] == "evaluation" and row["method"] == name]
        assert [row["step"] for row in evaluated] == [0, 2, 4]
        assert evaluated[0]["reward"] == base["reward"]
        assert evaluated[-1]["reward"] != base["reward"]
        assert evaluated[-1]["displacement"] > 0
        assert name in page
        trained = [row for row in rows if row["kind"] == "train" and row["method"] == name]
        assert all(row["adjoint_norm"] > 0 for row in trained)
    assert "deterministic adjoint matching on the last 2 steps" in page
    for name in ("pareto.png", "strengths.png"):
        assert (run / name).stat().st_size > 10_000
    loaded = gft.load(run, "memoryless@1")
    noise = jax.random.normal(jax.random.key(0), (3, 2))
    for params, equal in ((loaded.params, False), (loaded.base_params, True)):
        ours, base = (
            gft.sampling.sample_ode(loaded.drift, each, noise, num_steps=4).x
            for each in (params, loaded.base_params)
        )
        assert np.array_equal(ours, base) == equal


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_numbers(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    whole, out = workspace / "runs" / "reward" / "001", workspace / "interrupted"
    row = loop.Loop._row

    def interrupted(self, kind, **values):
        if (self.method, kind, values.get("step")) == ("memoryless@1", "evaluation", 4):
            raise KeyboardInterrupt
        return row(self, kind, **values)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_row", interrupted)
        assert call(monkeypatch, train, "reward", *TINY, "--out", out) == 130
    assert call(monkeypatch, train, "reward", *TINY, "--out", out, "--resume") == 0
    assert "memoryless@1 (seed 0): continues at step 2" in capsys.readouterr().out

    def numbers(run):
        return [row for row in rows_of(run) if row["kind"] != "timing"]

    assert numbers(out) == numbers(whole)
    for name in ("am-2@0.5", "memoryless@1"):
        ours, theirs = (gft.load(run, name).params for run in (out, whole))
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


@pytest.mark.slow
def test_a_run_that_diverges_is_told_and_the_others_go_on(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    whole, out = workspace / "runs" / "reward" / "001", workspace / "diverged"
    check = diagnostics.check_adjoints

    def exploding(limit, infos, step, what, advice):
        if what.startswith("am-2") and step == 2:
            norms = infos.stats["adjoint_norm"].copy()
            norms[1] = 1e9
            infos = infos._replace(stats=infos.stats | {"adjoint_norm": norms})
        check(limit, infos, step, what, advice)

    monkeypatch.setattr(program, "check_adjoints", exploding)
    assert call(monkeypatch, train, "reward", *TINY, "--out", out) == 0
    (told,) = [row for row in rows_of(out) if row["kind"] == "diverged"]
    assert told["method"] == "am-2@0.5"
    assert "the adjoint explodes at step 4: its mean norm is 1e+09" in told["reason"]
    assert "the checkpoint of step 2 is kept" in told["reason"]
    assert told["reason"].split(";")[0] in (out / "report.html").read_text().replace("&#x27;", "'")
    ours, theirs = (gft.load(run, "memoryless@1").params for run in (out, whole))
    jax.tree.map(functools.partial(np.testing.assert_array_equal), ours, theirs)
    capsys.readouterr()
    assert call(monkeypatch, train, "reward", *TINY, "--out", out, "--resume") == 0
    printed = capsys.readouterr().out
    assert "am-2@0.5 (seed 0): diverged before" in printed
    assert "memoryless@1 (seed 0): finished before" in printed
