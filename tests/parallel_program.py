"""Run by test_parallel.py in a process of its own, with several fake devices: compares them with one device."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parallel_problem import (
    STEPS,
    base_params,
    batch,
    batches,
    cooling,
    gradient,
    objective,
    start,
    worst,
)

import gft_jax as gft

NUM_DEVICES = int(sys.argv[1])
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
SINGLE, MAPPED = gft.parallel.single_device, gft.parallel.pmapped


def sharded(tuner):
    return gft.parallel.sharded(tuner, gft.parallel.mesh(fsdp=2), rule=gft.parallel.over_fsdp(2, min_size=16))


one_gradient = gradient(*start(SINGLE, optax.sgd(1.0)))
print("gradient", worst(gradient(*start(MAPPED, optax.sgd(1.0))), one_gradient))
print("sharded_gradient", worst(gradient(*start(sharded, optax.sgd(1.0))), one_gradient))

# Power: the mean of the devices' own weighted means is another gradient.
shares = [
    jax.tree.map(lambda leaf, k=k: leaf.reshape(NUM_DEVICES, -1, *leaf.shape[1:])[k], batch(0))
    for k in range(NUM_DEVICES)
]
temperature = cooling.temperature(cooling.init(), jnp.int32(0))
differentiated = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
local = [differentiated(objective, base_params, base_params, share, temperature)[0] for share in shares]
mean_of_means = jax.tree.map(lambda *leaves: -sum(leaves) / NUM_DEVICES, *local)
print("mean_of_means", worst(mean_of_means, one_gradient))

# Twenty steps on one device at once; on many one by one, and in chunks from a state that was fetched and placed.
runner, state, base = start(SINGLE, optax.adam(1e-2))
one, one_infos = jax.block_until_ready(runner.step_many(state, base, batches()))

runner, state, base = start(MAPPED, optax.adam(1e-2))
losses = []
for step in range(STEPS):
    state, info = jax.block_until_ready(runner.step(state, base, batch(step)))
    losses.append(float(info.loss))
many = runner.fetch(state)
print("params", worst(many.params, one.params))
print("averaged", worst(many.averaged_params, one.averaged_params))
print("cooling", worst(many.cooling_state, one.cooling_state))
print("losses", np.abs(np.array(losses) / np.asarray(one_infos.loss) - 1).max())

state = runner.place(runner.fetch(runner.init(jax.random.key(0), base_params)))
there = jax.device_put(batches(), jax.devices()[-1])  # as of a program that moves rows ahead of the step
state, infos = jax.block_until_ready(runner.step_many(state, base, there))
print("chunk", worst(runner.fetch(state).params, one.params))

# What was placed, and what was fetched, outlive the step that is given the copy; at the start both are the base.
single, replicated = (start(form, optax.sgd(1.0))[1] for form in (SINGLE, MAPPED))
for name, form, given in (
    ("single", SINGLE, replicated),
    ("sharded", sharded, single),
    ("pmap", MAPPED, single),
):
    runner, _, base = start(form, optax.sgd(1.0))
    state = runner.place(given)
    fetched = runner.fetch(state.params)
    state, _ = jax.block_until_ready(runner.step(state, base, batch(0)))
    print(f"{name}_kept", max(worst(given.params, base_params), worst(fetched, base_params)))
    print(f"{name}_moved", worst(runner.fetch(state.params), base_params))
copies = {len(leaf.addressable_shards) for leaf in jax.tree.leaves((state.params, base))}
print("copies", copies == {NUM_DEVICES})

turned = gft.parallel.mesh(devices=jax.devices()[::-1])
fetched = gft.parallel.sharded(gft.finetuner(objective, optax.sgd(1.0)), turned).fetch(base_params)
print(
    "first", {device for leaf in jax.tree.leaves(fetched) for device in leaf.devices()} == {jax.devices()[0]}
)

try:
    runner.step(state, base, jax.tree.map(lambda leaf: leaf[: 2 * NUM_DEVICES - 1], batch(0)))
except ValueError as error:
    print("refused", error)
