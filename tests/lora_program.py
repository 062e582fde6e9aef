"""Run by test_lora_devices.py in a process of its own: steps of adapters on several fake devices beside one."""

import sys

import jax
import numpy as np
import optax
from lora_toy import SHAPE, Net, adaptation, base_of
from parallel_problem import worst

import gft_jax as gft

assert jax.local_device_count() == int(sys.argv[1]), jax.local_devices()
net = Net(scan=True, remat=True)
adapted, base = adaptation(scan=True), base_of(net)
objective = gft.objectives.gradual(adapted.on_activations(gft.drifts.from_linen(net)))
rng = np.random.default_rng(0)
stream = gft.pairing.batches(
    rng.normal(2.0, 1.0, (32, *SHAPE)).astype(np.float32), batch_size=16, seed=0, cond=np.arange(32) % 4
)


def trained(make_runner, optimizer, num_steps):
    tuner = gft.finetuner(
        objective, optimizer, gft.cooling.constant(temperature=1.0), adapter=adapted.adapter
    )
    runner = make_runner(tuner)
    state, placed = runner.init(jax.random.key(0), base), runner.place(base)
    for step in range(num_steps):
        state, _ = jax.block_until_ready(runner.step(state, placed, stream.batch(step)))
    return runner.fetch(state)


def sharded(tuner):
    return gft.parallel.sharded(tuner, gft.parallel.mesh(fsdp=2), rule=gft.parallel.over_fsdp(2, min_size=16))


for name, optimizer, num_steps in (("gradient", optax.sgd(1.0), 1), ("run", optax.adam(1e-2), 4)):
    one = trained(gft.parallel.single_device, optimizer, num_steps)
    start = adapted.adapter.init(jax.random.key(0), base)
    moves = [jax.tree.map(np.subtract, one.params, start)]
    for form in (gft.parallel.pmapped, sharded):
        many = trained(form, optimizer, num_steps)
        moves.append(jax.tree.map(np.subtract, many.params, start))
        print(f"{name}_{form.__name__}", worst(moves[-1], moves[0]))
        print(f"{name}_{form.__name__}_average", worst(many.averaged_params, one.averaged_params))
    print(f"{name}_size", max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(moves[0])))
