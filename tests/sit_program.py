"""Run by test_sit.py in a process of its own: a step of SiT on several fake devices beside that of one."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parallel_problem import worst

import gft_jax as gft

NUM_DEVICES = int(sys.argv[1])
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
rng = np.random.default_rng(0)
batch = gft.Batch(
    x0=jnp.asarray(rng.normal(size=(8, 4, 4, 2)), jnp.float32),
    x1=jnp.asarray(rng.normal(size=(8, 4, 4, 2)), jnp.float32),
    key=jax.random.split(jax.random.key(0), 8),
    cond=jnp.arange(8) % 4,
)


def stepped(module, base_params, make_runner):
    """Change of the parameters by one step, fetched, and how the new ones lie."""
    objective = gft.objectives.gradual(gft.drifts.from_linen(module))
    cooling = gft.cooling.constant(temperature=1.0)
    runner = make_runner(gft.finetuner(objective, optax.sgd(1.0), cooling))
    placed = runner.place(base_params)
    state, _ = jax.block_until_ready(runner.step(runner.init(jax.random.key(0), placed), placed, batch))
    change = jax.tree.map(lambda new, old: new - old, runner.fetch(state.params), base_params)
    return change, jax.tree.map(lambda leaf: leaf.sharding, state.params)


def sharded(tuner):
    mesh = gft.parallel.mesh(data=2, fsdp=NUM_DEVICES // 2)
    return gft.parallel.sharded(tuner, mesh, rule=gft.parallel.sit_rule(NUM_DEVICES // 2, min_size=16))


for scan in (False, True):
    module = gft.networks.SiT(8, 2, 2, 2, num_classes=3, learn_sigma=True, remat=True, scan=scan)
    fresh = gft.loading.init_params(module, jax.random.key(0), (4, 4, 2))
    base_params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + np.float32(0.1) * rng.normal(size=leaf.shape).astype("f"), fresh
    )
    one, _ = stepped(module, base_params, gft.parallel.single_device)
    many, shardings = stepped(module, base_params, sharded)
    print(f"difference_{scan}", worst(many, one))
    print(f"size_{scan}", max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one)))
    block = shardings["blocks" if scan else "blocks_1"]
    for layer in ("qkv", "fc2"):
        print(f"{layer}_{scan}", tuple(block[layer]["kernel"].spec))
