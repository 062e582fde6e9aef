"""The README's code and the notebooks run as they stand."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_the_code_of_the_readme_runs_and_moves_the_samples_to_the_new_data():
    first, few_steps = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(first, names)
    samples, data = np.asarray(names["samples"]), names["new_data"]
    error = 4 * data.std(0) / np.sqrt(len(samples))
    assert np.abs(samples.mean(0) - data.mean(0)).max() < 0.15 + error.max()
    np.testing.assert_allclose(samples.std(0), data.std(0), atol=0.15)
    exec(few_steps, names)
    # So short a run of average velocities is rough; the base's samples have mean 0.
    samples = np.asarray(names["samples_in_one_step"])
    np.testing.assert_allclose(samples.mean(0), data.mean(0), atol=0.8)
    np.testing.assert_allclose(samples.std(0), data.std(0), atol=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, monkeypatch):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells), (
        "clear outputs"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a notebook runs more than it compiles
    NotebookClient(nbformat.read(path, as_version=4), timeout=300, kernel_name="python3").execute()
