"""Runs that are really killed: what is left continues to the very result of a run that never was."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import gft_jax as gft
from experiments.configs.digits import Digits
from experiments.workbench import Workbench
from gft_jax.checkpoints import Checkpoints, has_params
from gft_jax.loading import params_folder

ROOT = Path(__file__).parents[1]
METHODS = ("gradual-self-paced", "prior-preservation")
SETTINGS = dict(
    steps=160,
    eval_every=4,
    base_steps=100,
    hidden=16,
    depth=1,
    batch_size=16,
    num_target=64,
    sampling_steps=8,
)
FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SETTINGS.items())
SAVE_EVERY = 40  # ten chunks
ROWS_BEFORE = 2  # floor and base
ROWS_OF_METHOD = 1 + 2 * 40 + 2  # the start, the chunks, the best checkpoint, and the timing

AT_A_MOMENT = """
import fnmatch, os, signal, sys
from experiments import base_flow, train
when, what = sys.argv.pop(1).split()
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
replace = os.replace
def killed(source, target):
    hit = ".partial-" in str(source) and fnmatch.fnmatch(os.path.relpath(target), what)
    if hit and when == "before":
        kill()
    replace(source, target)
    if hit:
        kill()
os.replace = killed
if when == "in":  # half of the steps are done
    base_flow.check_finite = kill
sys.exit(train.main())
"""

INSIDE_A_SAVE = """
import os, signal, sys, threading
from experiments import train
from gft_jax.checkpoints import Checkpoints
save, finish = Checkpoints.save, Checkpoints._write_checksums
def never_finished(self):
    if self._saving[0] == 120:
        threading.Event().wait()
    finish(self)
def killed(self, step, *args):
    save(self, step, *args)
    while step == 120:  # the files are being written by threads in the background
        if list(self._directory.glob("*.orbax-checkpoint-tmp*")):
            os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save, Checkpoints._write_checksums = killed, never_finished
sys.exit(train.main())
"""


def start(folder, *flags, program=("-m", "experiments.train")):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",  # what was printed before a kill is wanted
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    arguments = ["digits", *shlex.split(FLAGS), "--methods", *METHODS, "--out", "run", *flags]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder, *flags):
    process = start(folder, *flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def killed(process):
    """The output of a process that is killed, or kills itself."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    return output


def killed_at_row(folder, row, delay):
    """The output of a resumed process that is killed when the log has a row, and some seconds later."""
    process = start(folder, "--resume")
    while len(rows_of(folder)) < row and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return killed(process)


def killed_at_a_moment(folder, moment):
    """The output of a process that kills itself around an `os.replace`, or in pretraining."""
    flags = ["--resume"] if (folder / "run").exists() else []
    return killed(start(folder, *flags, program=("-c", AT_A_MOMENT, moment)))


def rows_of(folder):
    """Whole rows of the log."""
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def checkpoints_of(folder, method):
    return Checkpoints(folder / "run" / "checkpoints" / f"{method}-seed0")


def unfinished(folder):
    """The method that is to be continued, and its newest checkpoint, which is as new as it can be."""
    method = next(name for name in METHODS if not has_params(params_folder(folder / "run", name, 0)))
    parsed = [json.loads(row) for row in rows_of(folder)]
    logged = max(
        (row["step"] for row in parsed if (row["kind"], row.get("method")) == ("train", method)), default=0
    )
    with checkpoints_of(folder, method) as checkpoints:
        latest = checkpoints.latest_step() or 0
    due = logged // SAVE_EVERY * SAVE_EVERY
    assert latest in (due, due - SAVE_EVERY)  # the last one may have been under way
    return method, latest


def assert_continues(output, method, step):
    line = f"{method} (seed 0): continues at step {step}\n"
    assert output.count("continues at step") == (step > 0), output[-3000:]
    assert (line in output) == (step > 0), output[-3000:]


def without_times(rows):
    parsed = [json.loads(row) for row in rows]
    return [
        {"kind": row["kind"], "method": row["method"]} if row["kind"] == "timing" else row for row in parsed
    ]


def states(folder):
    """Everything of the last checkpoint of both methods, as numpy, and the parameters that were kept."""
    bench = Workbench(Digits(methods=METHODS, **SETTINGS), Digits(**SETTINGS).data())
    params = bench.fresh_params(0)
    for method in METHODS:
        like = bench.runner(method).init(jax.random.key(0), params)
        with checkpoints_of(folder, method) as checkpoints:
            assert checkpoints.latest_step() == SETTINGS["steps"]
            state, _ = checkpoints.restore(like)
        kept = [gft.load(folder / "run", method, averaged=averaged).params for averaged in (False, True)]
        yield jax.device_get((state, kept))


def assert_same(one, other):
    assert without_times(rows_of(one)) == without_times(rows_of(other))
    for ours, theirs in zip(states(one), states(other), strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert "continues at step" not in finish(folder)
    assert len(rows_of(folder)) == ROWS_BEFORE + 2 * ROWS_OF_METHOD
    return folder


@pytest.mark.slow
def test_killed_at_nine_moments(tmp_path, uninterrupted):
    first = f"run/params/{METHODS[0]}-seed0"
    base, own_base = tmp_path / "runs" / "digits" / "base", tmp_path / "run" / "params" / "base"
    rng = random.Random(0)
    survived, continued = [0], []

    def at_rows(offset):
        for row in sorted(rng.sample(range(offset + 2 * 10, offset + 2 * 40 - 10), 2)):
            expected = unfinished(tmp_path)
            # Strictly after what the last process came to, and not only where a row has just been written
            output = killed_at_row(tmp_path, max(row, survived[-1] + 1), rng.uniform(0, 0.05))
            assert_continues(output, *expected)
            survived.append(len(rows_of(tmp_path)))
            assert survived[-1] > survived[-2]
            continued.append(expected)

    killed_at_a_moment(tmp_path, "in pretraining")
    assert not base.exists()
    killed_at_a_moment(tmp_path, "before runs/digits/base/*")
    (partial,) = base.iterdir()
    assert ".partial-" in partial.name
    killed_at_a_moment(tmp_path, "after runs/digits/base/*")
    (cached,) = base.iterdir()  # what the last kill left is gone
    assert has_params(cached)
    assert not own_base.exists()
    at_rows(ROWS_BEFORE)
    expected = unfinished(tmp_path)
    assert_continues(killed_at_a_moment(tmp_path, f"before {first}"), *expected)
    continued.append(expected)
    assert has_params(tmp_path / f"{first}-averaged")
    assert unfinished(tmp_path) == (METHODS[0], SETTINGS["steps"])
    output = killed_at_a_moment(tmp_path, f"after {first}")
    assert_continues(output, METHODS[0], SETTINGS["steps"])
    survived.append(len(rows_of(tmp_path)))
    assert survived[-1] == ROWS_BEFORE + ROWS_OF_METHOD
    at_rows(survived[-1])
    expected = unfinished(tmp_path)
    output = finish(tmp_path, "--resume")
    assert f"{METHODS[0]} (seed 0): finished before" in output
    assert_continues(output, *expected)
    continued.append(expected)
    assert {method for method, step in continued if step > 0} == set(METHODS)
    assert not [*tmp_path.rglob("*.partial-*"), *tmp_path.rglob("*-tmp*")]
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_inside_a_save_with_the_checkpoint_before_it_damaged(tmp_path, uninterrupted):
    killed(start(tmp_path, program=("-c", INSIDE_A_SAVE)))
    folder = tmp_path / "run" / "checkpoints" / f"{METHODS[0]}-seed0"
    assert list(folder.glob("120.orbax-checkpoint-tmp*"))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() == 80
    data = max((folder / "80" / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    output = finish(tmp_path, "--resume")
    assert f"{METHODS[0]} (seed 0): passed over a checkpoint that was cut short or damaged: 80" in output
    assert_continues(output, METHODS[0], 40)
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused_with_leaf_shapes_and_dtypes(tmp_path, uninterrupted):
    config = Digits(methods=METHODS, **(SETTINGS | {"hidden": 24}))
    bench = Workbench(config, config.data())
    like = bench.runner(METHODS[0]).init(jax.random.key(0), bench.fresh_params(0))
    folder = uninterrupted / "run" / "checkpoints" / f"{METHODS[0]}-seed0"
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match=r"\['last'\]\['kernel'\]: float32\[16, *64\].*float32\[24, *64\]"),
    ):
        checkpoints.restore(like)
