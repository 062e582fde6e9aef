"""Checkpoints of arrays that are spread over devices and processes, in processes of their own."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import on_fake_devices

from gft_jax.checkpoints import Best, Checkpoints

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_state_is_saved_as_it_is_spread_and_restored_on_as_many_devices_as_asked_for(tmp_path):
    printed = on_fake_devices("checkpoint_devices_program.py", str(tmp_path / "steps"))
    assert printed["restored"] == "25"
    assert printed["refused"].startswith("['w'], float32[8, 3], cannot be restored as it is to be spread")
    # What four devices wrote is restored on the one device here.
    with Checkpoints(tmp_path / "steps") as checkpoints:
        like = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
        assert checkpoints.restore(like)[0]["w"].devices() == jnp.zeros(()).devices()


@pytest.mark.slow
def test_two_processes_are_one_writer(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"NPROC": "16", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests" / "checkpoint_processes_program.py"),
                str(port),
                str(number),
                str(tmp_path),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for number, process in enumerate(processes):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
        printed = dict(re.findall(r"^([a-z]+) (.*)$", output, re.MULTILINE))
        assert printed == {
            "refused": "no such run" if number == 0 else "in the first process: no such run",
            "latest": "3",
            "best": "2",
            "own": "[2.0, 2.0, 2.0]",
            "params": "[7.0, 7.0]",
            "taken": "True",
        }
    # The four parts of what they wrote together, in one process with one device
    with Checkpoints(tmp_path / "steps", keep_best=Best("w2")) as checkpoints:
        assert checkpoints.skipped == ()
        like = {
            "w": jax.ShapeDtypeStruct((8, 4), jnp.float32),
            "step": jnp.int32(0),
            "own": jnp.zeros(3),
        }
        for step in (checkpoints.best_step(), checkpoints.latest_step()):
            restored, _ = checkpoints.restore(like, step=step)
            np.testing.assert_array_equal(restored["w"], np.arange(32.0).reshape(8, 4) * step)
        assert (tmp_path / "steps" / "3" / "checksums.json").stat().st_size > 100
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["2", "3"]
