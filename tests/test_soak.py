"""The soak, in short; and that it would notice."""

import copy
import random
import signal

import jax
import numpy as np
import pytest
from programs import call

from experiments.soak import __main__ as soak
from experiments.soak.comparison import row_errors, rows_of, state_distance
from experiments.soak.sessions import plan


@pytest.mark.slow
def test_a_run_on_changing_devices_comes_to_what_it_would_have_come_to(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = "--kills 2 --terms 1 --devices 1 2 --methods gradual-self-paced --steps 40 --seed 3"
    out = tmp_path / "soak"
    assert call(monkeypatch, soak, *flags.split(), "--out", out) == 0, capsys.readouterr().err
    text = (out / "soak.md").read_text()
    assert text.count("SIGKILL") == 3
    assert "Rows that are missing, too many or twice: 0." in text
    # The two rounded their sums differently: it is not the same run compared with itself.
    settings = soak.Soak(devices=(1, 2), methods=("gradual-self-paced",), steps=40).settings()
    runs = [out / name / "run" for name in ("interrupted", "uninterrupted")]
    assert 0.0 < state_distance(*runs, settings) <= soak.TOLERANCE


def log():
    rows = [{"kind": "floor", "seed": 0, "w2": 2.0}]
    for step in (0, 4, 8):
        rows += [{"kind": "evaluation", "method": "plain", "seed": 0, "step": step, "w2": 3.0 - step / 10}]
        rows += [{"kind": "train", "method": "plain", "seed": 0, "step": step, "loss": 1.0}]
    return [*rows, {"kind": "timing", "method": "plain", "seed": 0, "seconds": 1.0}]


def test_missing_double_and_other_rows_are_noticed():
    theirs = log()
    preempted = {"kind": "preempted", "method": "plain", "seed": 0, "step": 4}
    assert row_errors([*log()[:-1], preempted], theirs) == ([], 0.0)
    errors, _ = row_errors(log()[:3] + log()[4:], theirs)
    assert errors == ["row ('evaluation', 'plain', 0, 4) is missing"]
    errors, _ = row_errors([*log(), log()[3]], theirs)
    assert errors == ["row ('evaluation', 'plain', 0, 4) is there 2 times"]
    errors, _ = row_errors([*log(), log()[3] | {"step": 12}], theirs)
    assert errors == ["row ('evaluation', 'plain', 0, 12) is too many"]
    errors, _ = row_errors([log()[0], log()[2], log()[1], *log()[3:]], theirs)
    assert errors == ["the rows are in another order"]
    ours = copy.deepcopy(theirs)
    ours[3]["w2"] *= 1.01
    errors, distance = row_errors(ours, theirs)
    assert (errors, distance) == ([], pytest.approx(0.01, rel=1e-6))


def test_a_row_that_a_kill_cut_short_is_none(tmp_path):
    assert rows_of(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train"}\n{"kind": "tr')
    assert rows_of(tmp_path / "metrics.jsonl") == [{"kind": "train"}]


def test_interruptions_are_spread_over_the_run_and_the_same_for_a_seed():
    planned = plan(random.Random(5), 20, 5, (1, 2, 4), 3, 150)
    assert planned == plan(random.Random(5), 20, 5, (1, 2, 4), 3, 150)
    assert planned != plan(random.Random(6), 20, 5, (1, 2, 4), 3, 150)
    signals = [each.signal for each in planned]
    assert (signals.count(signal.SIGKILL), signals.count(signal.SIGTERM)) == (20, 5)
    rows = [each.row for each in planned if each.row is not None]
    assert rows == sorted(rows)
    assert np.ptp(rows) > 75
    assert {each.devices for each in planned} == {1, 2, 4}
    assert 0 < len(planned) - len(rows) < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kills 0 --terms 0", "at least one of both"),
        ("--steps 42", "a multiple of 4, at least 40"),
        ("--devices 3", "divisors of 32"),
        ("--devices 2 --parallel single", "--devices is (2,); allowed is 1"),
        ("--hidden 16", "--hidden is 16; allowed is at least 64"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, monkeypatch, capsys, flags, message):
    assert call(monkeypatch, soak, *flags.split(), "--out", tmp_path / "soak") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "soak").exists()
    (tmp_path / "soak").mkdir()
    (tmp_path / "soak" / "notes").write_text("text")
    assert call(monkeypatch, soak, "--out", tmp_path / "soak") == 2
    assert "is not empty" in capsys.readouterr().err
