"""How tests call the programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
NUM_DEVICES = 4


def call(monkeypatch, program, *arguments):
    """Exit status of a program, a module with a ``main``, called as from the command line."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        return program.main()
    except SystemExit as stop:
        return stop.code


def train_at_full_size(folder, *arguments):
    """Trains in ``folder``, in a process of its own with optimised programs: it runs more than it compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = PYTHONPATH
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def on_fake_devices(name, *arguments, num_devices=NUM_DEVICES):
    """What a program beside the tests prints on fake CPU devices: lines of a name and a value, as a dict.

    Its first argument is the number of devices.
    """
    [printed] = together([[beside(name), num_devices, *arguments]], num_devices)
    return printed


def beside(name):
    """Path of a program beside the tests."""
    return Path(__file__).with_name(name)


def together(commands, num_devices):
    """What programs print that run at the same time, each given to Python as arguments and so many fake devices."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=60"
    )
    environment = os.environ | {
        "NPROC": str(
            max(16, 4 * num_devices)
        ),  # with fewer threads fake devices wait for each other for ever
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # A program beside the tests finds its own folder, not the experiments.
    environment["PYTHONPATH"] = PYTHONPATH
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for arguments in commands
    ]
    try:
        ended = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [dict(re.findall(r"^(\S+) (.*)$", printed, re.MULTILINE)) for printed, _ in ended]
