"""Run by test_processes.py, as two processes or as one: prints the run of each form on what a process sees.

Arguments: devices of this process, its number, the number of processes, port. One process alone pairs as two would.
"""

import sys

import jax
import numpy as np
import optax

import gft_jax as gft

NUM_DEVICES, PROCESS, COUNT, PORT = map(int, sys.argv[1:])
if COUNT > 1:
    gft.parallel.start(f"127.0.0.1:{PORT}", COUNT, PROCESS, timeout=60)
from parallel_problem import STEPS, start, stream, weight, worst  # noqa: E402

assert jax.local_device_count() == NUM_DEVICES
assert jax.process_count() == COUNT
print("main", gft.parallel.is_main())
share, exact = gft.parallel.share(), gft.couplings.exact()
local = stream(share=share, coupling=exact if COUNT > 1 else gft.couplings.per_shard(exact, 2))
whole_plan = gft.pairing.share_of(stream(coupling=exact), share)
own = share.rows(len(weight))


def sharded(tuner):
    mesh = gft.parallel.mesh(fsdp=2)
    return gft.parallel.sharded(tuner, mesh, rule=gft.parallel.over_fsdp(2, min_size=16))


def summary(tree):
    """Numbers that tell two states apart, the same however these are spread: sums with random signs."""
    rng = np.random.default_rng(1)
    return [
        float(np.sum(np.asarray(leaf) * rng.choice([-1, 1], np.shape(leaf))))
        for leaf in jax.tree.leaves(tree)
    ]


for name, form, plan in (
    ("pmap", gft.parallel.pmapped, local),
    ("sharded", sharded, local),
    ("whole_plan", sharded, whole_plan),
):
    runner, state, base = start(form, optax.adam(1e-2), num_microbatches=2)
    losses = []
    for step in range(3):  # one by one, then in a chunk
        state, info = runner.step(state, base, plan.batch(step)._replace(weight=weight[own]))
        losses.append(float(jax.block_until_ready(info.loss)))
    batches = plan.many(3, STEPS - 3)
    batches = batches._replace(weight=np.broadcast_to(weight[own], batches.key.shape))
    state, infos = jax.block_until_ready(runner.step_many(state, base, batches))
    print(f"{name}.losses", losses + np.asarray(infos.loss).tolist())
    print(f"{name}.state", summary(runner.fetch(state)))
    print(f"{name}.global", all(leaf.is_fully_addressable == (COUNT == 1) for leaf in jax.tree.leaves(state)))
    # What was fetched is a copy, which goes back to where it was.
    again = runner.place(runner.fetch(state))
    print(f"{name}.again", worst(runner.fetch(again), runner.fetch(state)))
    layout = [
        ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        for ours, theirs in zip(*map(jax.tree.leaves, (again, state)), strict=True)
    ]
    print(f"{name}.layout", all(layout))
