"""Calls of the host inside jit: whole arguments, and no waiting for a thread on a single core."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.host_calls import call_on_host

PROGRAM = """
import faulthandler, os
faulthandler.dump_traceback_later(60, exit=True)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from gft_jax.host_calls import call_on_host

def total(x):
    return np.asarray(x).sum(dtype=np.float32)

result = jax.ShapeDtypeStruct((), jnp.float32)
busy = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda i, x: jnp.tanh(x @ x), x))
ours = jax.jit(lambda x: call_on_host(total, result, x + 1))
theirs = jax.jit(lambda x: jax.pure_callback(total, result, x + 1))
x = jnp.zeros((400, 400))
for program in (ours, THEIRS):
    for _ in range(4):
        waiting = program(busy(x))  # on the only thread, since it is not at hand
    print(float(waiting), flush=True)
"""


def test_arguments_are_whole_whatever_their_size():
    rng = np.random.default_rng(0)
    tree = {
        "large": rng.normal(size=(3, 211, 97)).astype(np.float32),
        "bits": rng.integers(0, 2, 130_000).astype(bool),
        "empty": np.zeros((0, 4), np.int32),
        "scalar": np.float32(3.0),
    }
    seen = []

    def note(given, number):
        seen.append((given, number))
        return np.float32(len(given)), np.arange(2, dtype=np.int32)

    result = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    program = jax.jit(lambda tree: call_on_host(note, result, tree, jnp.int32(7)))
    first, second = jax.block_until_ready(program(tree))
    ((given, number),) = seen
    assert (first, list(second), number) == (4, [0, 1], 7)
    for name, array in tree.items():
        assert isinstance(given[name], np.ndarray)
        assert given[name].dtype == array.dtype
        np.testing.assert_array_equal(given[name], array)


def test_rows_of_vmap_are_calls_of_their_own():
    x = jnp.arange(90_000.0).reshape(3, 30_000)
    last = jax.ShapeDtypeStruct((), jnp.float32)
    found = jax.jit(jax.vmap(lambda row: call_on_host(lambda row: row[-1], last, row)))(x)
    np.testing.assert_array_equal(found, [29_999, 59_999, 89_999])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="keeps to one core, which Linux alone can")
def test_a_single_core_does_not_wait_for_itself():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("THEIRS", "ours")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["160000.0"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="keeps to one core, which Linux alone can")
def test_a_callback_of_jax_does_wait():
    """Power. Where this fails, JAX has mended it, and `call_on_host` may go."""
    program = PROGRAM.replace("THEIRS", "theirs").replace(
        "dump_traceback_later(60", "dump_traceback_later(20"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["160000.0"]
    assert done.returncode != 0
