"""Shapes in annotations are checked at run time, in the tests alone: the hook must precede the package."""

import jax
import pytest
from jaxtyping import install_import_hook

with install_import_hook("gft_jax", "beartype.beartype"):
    import gft_jax  # noqa: F401


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items):
    if jax.default_backend() == "cpu":
        skip = pytest.mark.skip(reason="no accelerator on this machine")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
