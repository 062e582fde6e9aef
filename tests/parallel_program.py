"""Run by test_parallel.py in a process of its own, with several fake devices: compares them with one device."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gft_jax as gft

NUM_DEVICES = int(sys.argv[1])
module = gft.networks.ResidualMLP(hidden=16, depth=1)
drift = gft.drifts.from_linen(module)
rng = np.random.default_rng(0)
x1 = rng.normal(2.0, 1.0, (64, 3)).astype(np.float32)
weight = jnp.asarray(rng.uniform(0.1, 3.0, 16), jnp.float32)
params = gft.loading.init_params(module, jax.random.key(0), (3,))
base_params = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.05), params)
stream = gft.pairing.batches(x1, batch_size=16, seed=0)
objective = gft.objectives.gradual(drift, base_every=2)
cooling = gft.cooling.self_paced(40, start=0.2)


def batch(step):
    return stream.batch(step)._replace(weight=weight)  # shares of the devices weigh differently


def start(make_runner, optimizer):
    runner = make_runner(gft.finetuner(objective, optimizer, cooling))
    return runner, runner.init(jax.random.key(0), base_params), runner.place(base_params)


def worst(one, other):
    """Largest difference, relative to the largest entry of its leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
SINGLE, MAPPED = gft.parallel.single_device, gft.parallel.pmapped

# One step of plain gradient descent at rate 1: the change of the parameters is the gradient.
gradients = []
for make_runner in (SINGLE, MAPPED):
    runner, state, base = start(make_runner, optax.sgd(1.0))
    state, _ = jax.block_until_ready(runner.step(state, base, batch(0)))
    gradients.append(jax.tree.map(lambda new, old: new - old, runner.fetch(state.params), base_params))
print("gradient", worst(gradients[1], gradients[0]))

# Power: the mean of the devices' own weighted means is another gradient.
shares = [
    jax.tree.map(lambda leaf, k=k: leaf.reshape(NUM_DEVICES, -1, *leaf.shape[1:])[k], batch(0))
    for k in range(NUM_DEVICES)
]
temperature = cooling.temperature(cooling.init(), jnp.int32(0))
gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
local = [gradient(objective, base_params, base_params, share, temperature)[0] for share in shares]
mean_of_means = jax.tree.map(lambda *leaves: -sum(leaves) / NUM_DEVICES, *local)
print("mean_of_means", worst(mean_of_means, gradients[0]))

# Twenty steps on one device at once; on many one by one, and in chunks from a state that was fetched and placed.
batches = stream.many(0, 20)._replace(weight=jnp.broadcast_to(weight, (20, 16)))
runner, state, base = start(SINGLE, optax.adam(1e-2))
one, one_infos = jax.block_until_ready(runner.step_many(state, base, batches))

runner, state, base = start(MAPPED, optax.adam(1e-2))
losses = []
for step in range(20):
    state, info = jax.block_until_ready(runner.step(state, base, batch(step)))
    losses.append(float(info.loss))
many = runner.fetch(state)
print("params", worst(many.params, one.params))
print("averaged", worst(many.averaged_params, one.averaged_params))
print("cooling", worst(many.cooling_state, one.cooling_state))
print("losses", np.abs(np.array(losses) / np.asarray(one_infos.loss) - 1).max())

state = runner.place(runner.fetch(runner.init(jax.random.key(0), base_params)))
state, infos = jax.block_until_ready(runner.step_many(state, base, batches))
print("chunk", worst(runner.fetch(state).params, one.params))
kept = runner.fetch(state.params)
state, _ = jax.block_until_ready(runner.step(state, base, batch(0)))
print("kept", not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept)))
copies = {len(leaf.addressable_shards) for leaf in jax.tree.leaves((state.params, base))}
print("copies", copies == {NUM_DEVICES})

try:
    runner.step(state, base, jax.tree.map(lambda leaf: leaf[: 2 * NUM_DEVICES - 1], batch(0)))
except ValueError as error:
    print("refused", error)
