"""Shapes in annotations are checked at run time, in the tests alone: the hook must precede the package."""

import os
from pathlib import Path

# Tests compile much and run little: programs that are optimised less, by XLA's older and quicker generator of code for
# fusions, halve their time. Set XLA_FLAGS yourself for optimised programs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

# Compiled programs are kept: within a session for programs that are built again, and for the next session. Each worker
# of pytest-xdist has its own: JAX writes a program in place, where another one could read half of it.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax" / WORKER)
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

with install_import_hook("gft_jax", "beartype.beartype"):
    import gft_jax  # noqa: F401


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def without_hook():
    """As for a user: under pytest the shape hook raises its own error before the library can."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items):
    if jax.default_backend() == "cpu":
        skip = pytest.mark.skip(reason="no accelerator on this machine")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
