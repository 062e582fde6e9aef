"""Run by test_few_steps_runs.py in a process of its own: a tiny few_steps run on one device, and on several."""

import json
import os
import sys
import tempfile
from pathlib import Path

import jax

from experiments import train

NUM_DEVICES = int(sys.argv[1])
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
SETTINGS = sys.argv[2:]


def numbers(out, *flags):
    """Scores of all evaluations of a run, by method, step and name."""
    sys.argv = ["train", "few_steps", *SETTINGS, "--out", out, *flags]
    assert train.main() == 0
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return {
        (row["method"], row["step"], name): value
        for row in rows
        if row["kind"] == "evaluation"
        for name, value in row.items()
        if isinstance(value, float)
    }


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    one = numbers("one")
    many = numbers("many", "--parallel", "sharded", "--fsdp", "2")
assert many.keys() == one.keys()
print("difference", max(abs(many[key] - one[key]) for key in one))
last = {name: max(step for method, step, _ in one if method == name) for name, _, _ in one}
moved = [abs(one[name, last[name], score] - start) for (name, step, score), start in one.items() if step == 0]
print("moved", max(moved))
