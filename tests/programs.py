"""How tests call the programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

NUM_DEVICES = 4


def call(monkeypatch, program, *arguments):
    """Exit status of a program, a module with a ``main``, called as from the command line."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        return program.main()
    except SystemExit as stop:
        return stop.code


def on_fake_devices(name, *arguments):
    """What a program beside the tests prints on four fake CPU devices: lines of a name and a value, as a dict."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={NUM_DEVICES} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=60"
    )
    environment = os.environ | {
        "NPROC": str(4 * NUM_DEVICES),  # with fewer threads fake devices wait for each other for ever
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    program = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, str(program), str(NUM_DEVICES), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=program.parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(re.findall(r"^(\S+) (.*)$", done.stdout, re.MULTILINE))
