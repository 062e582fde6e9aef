"""The harness by a clock of its own, and that the programs it compares compute the same. No speed is tested."""

import os
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from scipy.optimize import linear_sum_assignment

import gft_jax as gft
from experiments.benchmarks import (
    data,
    distances,
    handwritten,
    library,
    overheads,
    pairing,
    prefetching,
    sampling,
    table,
)
from experiments.benchmarks.__main__ import benchmark
from experiments.benchmarks.interleaved import Comparison, Entrant, compare, seconds_per_step
from experiments.plain_mlp import PlainMLP, selu_by_tanh
from gft_jax.loading import init_params


class Clock:
    """Time that passes only where an entrant says so."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def entrant(self, name, seconds, steps=1):
        durations = iter(seconds)

        def run():
            self.log.append(name)
            self.now += next(durations)

        return Entrant(run, steps)


def test_ratios_are_taken_round_by_round_from_the_time_of_a_step():
    clock = Clock()
    load = [1.0, 2.0, 4.0, 8.0, 16.0]  # the whole machine slows down: the ratio of medians would be off
    factors = [3.0, 1.0, 2.0, 5.0, 4.0]
    slow = [99.0, *(10 * factor * scale for factor, scale in zip(factors, load, strict=True))]
    entrants = {"slow": clock.entrant("slow", slow, steps=10), "fast": clock.entrant("fast", [99.0, *load])}
    seconds = seconds_per_step(entrants, rounds=5, warm_ups=1, clock=clock)
    np.testing.assert_allclose(seconds["fast"], load)
    outcome = compare("here", Comparison("slow / fast", "slow", "fast"), seconds)
    assert outcome.quartiles == pytest.approx((2.0, 3.0, 4.0))
    assert outcome.milliseconds == pytest.approx((8e3, 4e3))
    assert np.median(seconds["slow"]) / np.median(seconds["fast"]) == pytest.approx(2.0)  # power


def test_every_round_has_all_entrants_in_an_order_of_its_own_after_the_warm_ups():
    clock = Clock()
    entrants = {name: clock.entrant(name, [1.0] * 32) for name in "abc"}
    seconds_per_step(entrants, rounds=30, warm_ups=2, clock=clock)
    log = "".join(clock.log)
    assert log.startswith("aabbcc")
    rounds = [log[start : start + 3] for start in range(6, len(log), 3)]
    assert len(rounds) == 30
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) == 6  # every order occurs, so that none always follows the same other one


def test_no_rounds_are_refused_before_anything_runs():
    clock = Clock()
    with pytest.raises(ValueError, match="rounds >= 1, got 0"):
        seconds_per_step({"a": clock.entrant("a", [1.0])}, rounds=0)
    with pytest.raises(ValueError, match="--rounds and --widths must be positive"):
        benchmark("steps", widths=())
    with pytest.raises(ValueError, match="--rounds and --widths must be positive"):
        benchmark("steps", rounds=0)
    assert clock.log == []


def test_flags_of_another_benchmark_are_refused():
    with pytest.raises(ValueError, match="--points is of distances: sampling has --rounds and --widths"):
        benchmark("sampling", points=10)
    with pytest.raises(ValueError, match="distances has --points"):
        benchmark("distances", widths=(64,))
    with pytest.raises(ValueError, match="--points must be above 100, got 0"):
        benchmark("distances", points=0)


def test_a_quick_look_takes_one_round_at_the_first_width(monkeypatch, tmp_path, capsys):
    def measure(widths, rounds):
        seconds = {"a": np.full(3, float(rounds)), "b": np.ones(3)}
        return [compare(f"widths {widths}", Comparison("a / b", "a", "b"), seconds)]

    monkeypatch.setattr(library, "measure", measure)
    benchmark("steps", out=tmp_path, quick=True)
    text = (tmp_path / "steps.md").read_text()
    assert "| widths (64,) | a / b | 1.000 |" in text
    assert text.startswith("# Training steps")
    benchmark("steps", out=tmp_path)
    assert "| widths (64, 128, 256, 512) | a / b | 20.000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bar", "met", "word"),
    [
        ({}, None, "|  |  |"),
        ({"at_most": 2.0}, True, "<= 2"),
        ({"at_most": 1.9}, False, "NO"),
        ({"at_least": 2.0}, True, ">= 2"),
        ({"at_least": 2.1}, False, "NO"),
    ],
)
def test_a_bar_is_on_the_median(bar, met, word, tmp_path):
    seconds = {"a": np.array([1.0, 2.0, 9.0]), "b": np.ones(3)}
    outcome = compare("here", Comparison("a / b", "a", "b", **bar), seconds)
    assert outcome.met() is met
    text = table.write(tmp_path, "some", "Title", table.machine(["jax"]), [outcome])
    assert word in next(line for line in text.splitlines() if "a / b" in line)
    assert (tmp_path / "some.md").read_text() == text
    assert jax.__version__ in text


def test_the_handwritten_step_is_the_librarys_and_another_is_refused():
    module = gft.networks.ResidualMLP(hidden=4, depth=1, time_features=4)
    x1 = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    work = library.work(module, x1, batch_size=4, chunk=5)
    start = library.plain(work).init(jax.random.key(0), params=work.params)
    theirs, _ = jax.jit(library.plain(work).step_many)(start, None, work.stacked)

    @jax.jit
    def ours(learning_rate, averaging):
        step = handwritten.flow_matching_step(module, learning_rate, averaging)
        return jax.lax.scan(step, handwritten.start(work.params), work.stacked)[0]

    rate, averaging = library.LEARNING_RATE, library.AVERAGING
    handwritten.check_agreement(ours(rate, averaging), theirs, rate, 5)
    for other in ((1.01 * rate, averaging), (rate, 0.2)):
        with pytest.raises(ValueError, match="do not compute the same"):
            handwritten.check_agreement(ours(*other), theirs, rate, 5)


def test_sampling_by_the_library_is_the_handwritten_loop_and_another_is_refused():
    module, x0 = PlainMLP(8), jnp.asarray(np.random.default_rng(0).standard_normal((20, 2)), jnp.float32)
    start = init_params(module, jax.random.key(0), (2,))
    params = sampling.trained(module, start, 20)

    @jax.jit
    def sample(start, params):
        programs = [sampling.euler(module), sampling.euler_by_hand(module)]
        programs.append(sampling.euler(PlainMLP(8, selu_by_tanh)))
        results = [program(params, x0) for program in programs]
        results.append(programs[0](start, x0))
        adaptive = [sampling.dopri5(module, tolerance)(params, x0) for tolerance in (1e-2, 1e-5)]
        return results, adaptive

    results, (loose, tight) = jax.device_get(sample(start, params))
    results = dict(zip(["library", "by hand", "by tanh", "untrained"], results, strict=True))
    with pytest.raises(ValueError, match=r"nothing is measured.*from those of library: \{'untrained'"):
        sampling.largest_difference(results, 1e-5)
    del results["untrained"]
    assert sampling.largest_difference(results, 1e-5) > 0
    assert loose.num_evaluations < tight.num_evaluations  # the tolerance is passed on
    assert sampling.rms(results["library"] - tight.x) < 0.01


def test_selu_by_tanh_is_selu():
    x = np.concatenate([-np.logspace(-9, 2, 200), np.linspace(0, 5, 50)]).astype(np.float32)
    np.testing.assert_allclose(jax.jit(selu_by_tanh)(x), linen.selu(x), rtol=1e-6)


def test_training_on_files_ends_where_training_on_rows_in_memory_does(tmp_path, monkeypatch):
    for name, value in {"SIZE": 6, "BATCH_SIZE": 4, "NUM_STEPS": 3, "DEPTH": 2}.items():
        monkeypatch.setattr(data, name, value)
    data.write_images(tmp_path, 5)
    images = gft.data.images(tmp_path)
    programs = data.entrants(4, images, gft.data.in_memory(images))
    programs.pop("decoding").run()
    ends = {name: jax.tree.leaves(program.run().params) for name, program in programs.items()}
    assert list(ends) == ["memory", "memory, ahead", "files", "files, ahead"]
    for end in ends.values():
        for ours, theirs in zip(end, ends["memory"], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    monkeypatch.setattr(data, "NUM_STEPS", 2)
    shorter = jax.tree.leaves(programs["files"].run().params)
    assert any((ours != theirs).any() for ours, theirs in zip(shorter, ends["memory"], strict=True))  # power


@pytest.mark.parametrize("name", distances.DISTANCES)
def test_every_distance_of_the_benchmark_tells_near_from_far(name):
    call, (x, y) = distances.DISTANCES[name].call, distances.points(30)
    near, far = call(x, y), call(x + np.float32(5), y)
    assert (near > far) if name == "prdc" else (near < far)  # it is the coverage


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_memory_of_a_distance_is_that_of_its_block(monkeypatch):
    num = 3000
    (cost,) = distances.measure(["energy distance"], num)
    assert cost.value == gft.metrics.energy_distance(*distances.points(num))
    block = 1024 * num * 8 / 2**20
    assert 0.9 * block < cost.added < 2 * block  # all distances are 2.9 blocks
    assert cost.added < cost.peak
    assert distances.cells(cost)[2:] == [
        f"{cost.added:.0f}",
        f"{cost.peak:.0f}",
        "1024 rows of a distance matrix",
    ]
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ValueError, match="the process of prdc ended with status 1"):
        distances.measure(["prdc"], num)


def test_the_table_of_distances(monkeypatch, tmp_path):
    def measure(names, num):
        return [distances.Cost(name, 0.5, 2.0, float(num), 300.0) for name in names]

    monkeypatch.setattr(distances, "measure", measure)
    benchmark("distances", out=tmp_path, quick=True)
    lines = (tmp_path / "distances.md").read_text().splitlines()
    assert "| sliced W2 | 2.0 | 500 | 300 | 32 of 1000 directions |" in lines
    assert lines[3].count("|") == lines[2].count("|") == lines[4].count("|")


def test_pairings_are_timed_beside_what_they_achieve(monkeypatch, tmp_path):
    def off(key, x0, x1):
        return gft.couplings.exact()(key, x0, x1)._replace(marginal_error=jnp.float32(0.25))

    def unfinished(key, x0, x1):
        return off(key, x0, x1)._replace(converged=jnp.asarray(False))

    kept = {name: pairing.COUPLINGS[name] for name in ("independent", "exact")}
    monkeypatch.setattr(pairing, "COUPLINGS", kept | {"off": (lambda: off, 40), "small": (lambda: None, 39)})
    costs = {cost.coupling: cost for cost in pairing.measure((40,), 3)}
    assert set(costs) == {"independent", "exact", "off"}
    squared = np.sum((pairing.ends(40)[0][:, None] - pairing.ends(40)[1]) ** 2, axis=-1)
    rows, columns = linear_sum_assignment(squared)
    assert costs["exact"].cost == pytest.approx(squared[rows, columns].mean(), rel=1e-5)
    assert costs["independent"].cost == pytest.approx(squared.mean(), rel=1e-5)
    lower, median, upper = costs["exact"].milliseconds
    assert 0 < lower <= median <= upper
    half = costs["exact"]._replace(cost=(squared.mean() + costs["exact"].optimal) / 2, rows=8192)
    assert pairing.cells(half)[-1] == "0.500 *"
    assert pairing.cells(costs["independent"])[-1] == "1.000"
    assert pairing.cells(costs["off"])[5:] == ["2.5e-01", "1.000", "0.000"]
    monkeypatch.setattr(pairing, "COUPLINGS", {"off": (lambda: unfinished, 40)})
    with pytest.raises(ValueError, match="has not converged"):
        pairing.measure((40,), 1)
    for widths in ((), (1,), (8193,)):
        with pytest.raises(ValueError, match="numbers of rows from 2 to 8192"):
            benchmark("pairing", widths=widths, out=tmp_path)


@pytest.mark.slow
def test_overheads_are_those_of_the_training_loop(monkeypatch):
    saved, logged = [], []
    save, log = overheads.Checkpoints.save, overheads.RunFolder.log
    monkeypatch.setattr(
        overheads.Checkpoints, "save", lambda self, step, *args: saved.append(step) or save(self, step, *args)
    )
    monkeypatch.setattr(
        overheads.RunFolder, "log", lambda self, rows: logged.append(len(rows)) or log(self, rows)
    )
    monkeypatch.setattr(overheads, "CHUNK", 4)
    outcomes = overheads.measure((256,), 1)
    assert [outcome.comparison.at_most for outcome in outcomes] == [1.03, 1.03, 1.05, 1.02]
    assert saved == [0, 1, 2]  # two to warm up
    assert sorted(logged) == [1, 1, 1, 4, 4, 4]


def test_sampling_beside_torch(monkeypatch):
    pytest.importorskip("torchdyn", reason='needs the extra "bench"')
    from experiments.benchmarks import against_torch_solvers

    monkeypatch.setattr(against_torch_solvers, "NUM_POINTS", 64)
    monkeypatch.setattr(against_torch_solvers, "TRAINING_STEPS", 20)
    outcomes = against_torch_solvers.measure((8,), 1)
    assert [outcome.comparison.at_least for outcome in outcomes] == [None, 1.6, 1.6, None, 1.4, 1.4]


@pytest.mark.slow
def test_pairs_beside_pot_are_refused_where_they_are_not_those_of_pot(monkeypatch):
    def emd(a, b, matrix):
        rows, columns = linear_sum_assignment(matrix)
        plan = np.zeros_like(matrix)
        plan[rows, columns] = factor / len(a)
        return plan

    fake = types.SimpleNamespace(dist=lambda x, y: np.sum((x[:, None] - y) ** 2, axis=-1), emd=emd)
    monkeypatch.setitem(sys.modules, "ot", fake)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks.against_pot", raising=False)
    from experiments.benchmarks import against_pot

    for rows in ((1,), (256, 5000)):
        with pytest.raises(ValueError, match="numbers of rows from 2 to 4096"):
            against_pot.measure(rows, 1)
    monkeypatch.setattr(against_pot, "EPSILONS", (0.05,))
    monkeypatch.setattr(against_pot, "ASKED", {200: 3.0})
    monkeypatch.setattr(against_pot, "rounds_at", lambda rows, rounds: rounds)
    factor = 1.0
    sinkhorn, exact = against_pot.measure((200,), 1)
    assert (sinkhorn.comparison.at_least, exact.comparison.at_least) == (3.0, None)
    assert "exact: L1 error 0.0e+00, cost 1.000 of the optimal one" in exact.setting
    assert 1.05 < float(sinkhorn.setting.split()[-5]) < 1.2
    factor = 1.01
    with pytest.raises(ValueError, match=r"nothing is measured: exact has .* cost 0\.99"):
        against_pot.measure((200,), 1)
    factor = 1.0
    monkeypatch.setattr(against_pot, "MAX_ERROR", 1e-5)
    with pytest.raises(ValueError, match=r"nothing is measured: epsilon 0\.05 has marginal error"):
        against_pot.measure((200,), 1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are kept to cores on Linux alone")
def test_all_threads_are_kept_to_the_cores_of_an_entrant():
    allowed, leave = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()

    def cores():
        return {len(os.sched_getaffinity(number)) for number in (0, thread.native_id)}

    with prefetching._on_cores(1):
        assert cores() == {1}
    assert cores() == {len(allowed)}
    leave.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores of Linux",
)
def test_prefetching_is_compared_with_its_marginal_error(monkeypatch):
    for name, value in {"BATCH_SIZE": 8, "PAIR_SIZE": 32, "CHUNK": 8}.items():
        monkeypatch.setattr(prefetching, name, value)
    outcomes = prefetching.measure((256,), 1)
    assert [outcome.comparison.at_most for outcome in outcomes] == [1.15, *[None] * 7]
    errors = [float(outcome.setting.split()[-1]) for outcome in outcomes]
    assert all(0 < error <= 2e-3 for error in errors[:4])
    assert errors[4:] == [0] * 4


@pytest.mark.parametrize(
    ("which", "packages"),
    [("torchcfm", "torch, torchcfm, POT"), ("sampling", "torch, torchcfm, POT, torchdiffeq, torchdyn")],
)
def test_without_torch_the_comparisons_say_what_to_install(which, packages, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf'{packages} is not installed: pip install -e "\.\[bench\]"'):
        benchmark(which)
