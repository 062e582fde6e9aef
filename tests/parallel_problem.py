"""What the programs of the parallel tests train: rows that differ, and weigh differently, on every device."""

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft

BATCH_SIZE = 32
STEPS = 20
module = gft.networks.ResidualMLP(hidden=16, depth=1)
drift = gft.drifts.from_linen(module)
rng = np.random.default_rng(0)
x1 = rng.normal(2.0, 1.0, (64, 3)).astype(np.float32)
weight = jnp.asarray(rng.uniform(0.1, 3.0, BATCH_SIZE), jnp.float32)
base_params = jax.tree.map(
    lambda leaf: np.asarray(leaf) + np.float32(0.05),
    gft.loading.init_params(module, jax.random.key(0), (3,)),
)
objective = gft.objectives.gradual(drift, base_every=2)
cooling = gft.cooling.self_paced(40, start=0.2)


def stream(**options):
    return gft.pairing.batches(x1, batch_size=BATCH_SIZE, seed=0, **options)


def batch(step):
    return stream().batch(step)._replace(weight=weight)


def batches():
    return stream().many(0, STEPS)._replace(weight=jnp.broadcast_to(weight, (STEPS, BATCH_SIZE)))


def start(make_runner, optimizer, **options):
    """A runner, a fresh state, and the base, placed."""
    runner = make_runner(gft.finetuner(objective, optimizer, cooling, **options))
    return runner, runner.init(jax.random.key(0), base_params), runner.place(base_params)


def gradient(runner, state, base, of=None):
    """The gradient at the base: the change by one step of plain gradient descent at rate 1."""
    state, _ = jax.block_until_ready(runner.step(state, base, batch(0) if of is None else of))
    return jax.tree.map(lambda new, old: new - old, runner.fetch(state.params), base_params)


def worst(one, other):
    """Largest difference, relative to the largest entry of its leaf."""
    arrays = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (one, other)), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in arrays)
