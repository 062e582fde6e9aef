"""The harness by a clock of its own, and that the two programs it compares compute the same. No speed is tested."""

import jax
import numpy as np
import pytest

import gft_jax as gft
from experiments.benchmarks import handwritten, library, table
from experiments.benchmarks.__main__ import benchmark
from experiments.benchmarks.interleaved import Comparison, Entrant, compare, seconds_per_step


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
    assert clock.log == []


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


def test_without_torch_the_comparison_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'torch, torchcfm, POT is not installed: pip install -e "\.\[bench\]"'
    ):
        benchmark("torchcfm")
