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
from gft_jax.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
METHODS = ("gradual-self-paced", "prior-preservation")
SETTINGS = dict(
    steps=160, eval_every=4, base_steps=40, hidden=16, depth=1, batch_size=16, num_target=64, sampling_steps=8
)
FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SETTINGS.items())
NUM_ROWS = 2 + 2 * (1 + 2 * 40 + 1)  # floor, base; for each method the start, the chunks, and the timing

INSIDE_A_SAVE = """
import os, signal, sys
from experiments import loop, train
save, saves = loop.Checkpoints.save, []
def killed(self, step, *args):
    save(self, step, *args)
    if step > 0:  # not the parameters of the base
        saves.append(step)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the files are being written by threads in the background
loop.Checkpoints.save = killed
sys.exit(train.main())
"""


def start(folder, *flags, program=("-m", "experiments.train")):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
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


def rows_of(folder):
    path = folder / "run" / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


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
        with Checkpoints(folder / "run" / "checkpoints" / f"{method}-seed0") as checkpoints:
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
    finish(folder)
    assert len(rows_of(folder)) == NUM_ROWS
    return folder


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path, uninterrupted):
    moments = sorted(random.Random(0).sample(range(NUM_ROWS - 4), 5))  # in rows of the log
    survived = []
    for moment in moments:
        process = start(tmp_path, *(["--resume"] if rows_of(tmp_path) else []))
        while len(rows_of(tmp_path)) < moment and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output[-2000:]
        survived.append(len(rows_of(tmp_path)))
    assert survived[-1] >= moments[-1] > 40  # the second method was killed, too
    finish(tmp_path, "--resume")
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_inside_a_save_and_a_checkpoint_cut_short(tmp_path, uninterrupted):
    process = start(tmp_path, program=("-c", INSIDE_A_SAVE))
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints" / f"{METHODS[0]}-seed0"
    with Checkpoints(folder) as checkpoints:
        latest = checkpoints.latest_step()
    assert latest in (80, 120)  # a save every 40 steps; the third may or may not have come through
    mark = folder / str(latest) / "_CHECKPOINT_METADATA"
    mark.unlink()  # as a kill in the middle of a deletion leaves it
    output = finish(tmp_path, "--resume")
    assert f"passed over a checkpoint that was cut short: {latest}" in output
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
