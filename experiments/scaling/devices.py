"""Run by `checks.device_checks` in a process of its own: what eight fake devices hold and exchange in a step.

python -m experiments.scaling.devices fsdp both mapped

prints a check a line, in JSON.
"""

import json
import math
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft
from experiments.scaling.checks import NUM_DEVICES, Check
from experiments.scaling.hardware import H100
from experiments.scaling.network import Network
from experiments.scaling.training import FLOAT, STATE, Setting, memory
from experiments.scaling.transformer import ALL, Transformer, parameters
from gft_jax.types import Batch

SHAPE = Transformer("depth 2, width 64", depth=2, width=64, heads=4, image=4, classes=15)
IMAGES = 16
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
_READ_OFF = {"fsdp": "loop", "mapped": "update"}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def sharded(data: int, fsdp: int) -> Any:
    """Runners on a mesh, with every array split that can be."""
    rule = gft.parallel.over_fsdp(fsdp, min_size=1)
    return lambda tuner: gft.parallel.sharded(tuner, gft.parallel.mesh(data=data, fsdp=fsdp), rule=rule)


FORMS: dict[str, tuple[str, Any, int, int]] = {
    "fsdp": ("fsdp=8, 2 micro-batches", sharded(1, 8), 8, 2),
    "both": ("data=2, fsdp=4", sharded(2, 4), 4, 1),
    "mapped": ("pmap, 2 micro-batches", gft.parallel.pmapped, 1, 2),
}
"""By name: title, runner, ``fsdp``, number of micro-batches."""


def exchanged(text: str) -> Counter:
    """Bytes of the results of collectives by kind, in a compiled module's text; those in a loop as often as it runs."""
    lines, name = defaultdict(list), ""
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%(\S+) .*\{$", line):
            name = opened[1]
        lines[name].append(line)
    times = defaultdict(lambda: 1)
    for line in text.splitlines():
        body, count = (
            re.search(r" while\(.*body=%([^,\s]+)", line),
            re.search(r'known_trip_count":\{"n":"(\d+)"', line),
        )
        if body and count:
            times[body[1]] = int(count[1])
    total = Counter()
    for name, inside in lines.items():
        for result, kind in (found.groups() for line in inside if (found := _COLLECTIVE.search(line))):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
            sizes = (
                _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in shapes
            )
            total[kind] += times[name] * sum(sizes)
    return total


def held(tree: Any) -> int:
    """Bytes on the first device."""
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(tree))


def checks(name: str, dumped: Path) -> list[Check]:
    """A step of gradual fine-tuning with a float32 base, computed in float32.

    Args:
        name: of a form.
        dumped: where XLA writes the text of what it compiles.
    """
    title, make_runner, fsdp, num_microbatches = FORMS[name]
    network, size = Network(SHAPE), parameters(SHAPE)
    x = jax.random.normal(jax.random.key(0), (IMAGES, SHAPE.image, SHAPE.image, SHAPE.channels))
    base = network.init(jax.random.key(1), jnp.zeros(1), x[:1])["params"]
    tuner = gft.finetuner(
        gft.objectives.gradual(gft.drifts.from_linen(network)),
        optax.adam(1e-4),
        gft.cooling.constant(temperature=1.0),
        num_microbatches=num_microbatches,
    )
    runner = make_runner(tuner)
    state, base = runner.init(jax.random.key(2), base), runner.place(base)
    before = held(state), held(base)
    known = set(dumped.iterdir())
    batch = Batch(x, x, jax.random.split(jax.random.key(3), IMAGES), jnp.arange(IMAGES))
    _, info = jax.block_until_ready(runner.step(state, base, batch))
    assert np.isfinite(float(info.loss)), info
    texts = [path for path in set(dumped.iterdir()) - known if path.name.endswith("after_optimizations.txt")]
    step = max(texts, key=lambda path: path.stat().st_size)
    total = exchanged(step.read_text())
    report = step.with_name(step.name.replace(".txt", "-memory-usage-report.txt")).read_text()
    times = 1 if fsdp == 1 else num_microbatches
    between = 1 / fsdp if 1 < fsdp < NUM_DEVICES else 0
    found = [
        Check(f"{title}: state on a device", STATE / fsdp, before[0] / size, "byte / parameter"),
        Check(f"{title}: base on a device", FLOAT / fsdp, before[1] / size, "byte / parameter"),
        Check(
            f"{title}: gradients reduced",
            FLOAT * times * (1 + between),
            (total["all-reduce"] + total["reduce-scatter"]) / size,
            "byte / parameter",
            "all-reduce: XLA makes no reduce-scatter for a processor" if fsdp > 1 else "all-reduce",
        ),
    ]
    if fsdp > 1:
        found.append(
            Check(
                f"{title}: gathered",
                2 * FLOAT,
                total["all-gather"] / size,
                "byte / parameter",
                "trained and base",
            )
        )
    images = IMAGES // NUM_DEVICES
    setting = Setting(
        SHAPE,
        H100,
        NUM_DEVICES,
        fsdp,
        images,
        num_microbatches,
        ALL,
        base=FLOAT,
        compute=FLOAT,
        fused_attention=False,
    )
    found.append(
        Check(
            f"{title}: all memory of the step",
            memory(setting).total / size,
            int(re.findall(r"Total bytes: (\d+)", report)[0]) / size,
            "byte / parameter",
            f"float32; what the {_READ_OFF[name]} adds is read off here" if name in _READ_OFF else "float32",
        )
    )
    return found


def main() -> None:
    """Checks the forms named on the command line."""
    assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
    dumped = Path(os.environ["XLA_FLAGS"].split("--xla_dump_to=")[1].split()[0])
    for name in sys.argv[1:]:
        for check in checks(name, dumped):
            print(json.dumps(check._asdict()), flush=True)


if __name__ == "__main__":
    main()
