"""Run by test_parallel.py in a process of its own: every form on so many fake devices, compared with one device."""

import sys

import jax
import optax
from parallel_problem import base_params, batch, batches, gradient, start, worst

import gft_jax as gft

NUM_DEVICES = int(sys.argv[1])
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))


def sharded(fsdp):
    mesh = gft.parallel.mesh(fsdp=fsdp)
    rule = gft.parallel.over_fsdp(fsdp, min_size=16)
    return lambda tuner: gft.parallel.sharded(tuner, mesh, rule=rule)


FORMS = {"pmap": gft.parallel.pmapped, "data": sharded(1), "fsdp": sharded(NUM_DEVICES)}
if NUM_DEVICES > 2:
    FORMS["both"] = sharded(2)


def run(make_runner, **options):
    """State after twenty steps, with its runner, the losses, and gradient norms."""
    runner, state, base = start(make_runner, CLIPPED, **options)
    before, layout = state, [leaf.sharding for leaf in jax.tree.leaves(state)]
    state, infos = jax.block_until_ready(runner.step_many(state, base, batches()))
    same = all(
        leaf.sharding.is_equivalent_to(old, leaf.ndim)
        for leaf, old in zip(jax.tree.leaves(state), layout, strict=True)
    )
    donated = all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    return runner, state, infos, same and donated


one_gradient = gradient(*start(gft.parallel.single_device, optax.sgd(1.0)))
_, one, one_infos, _ = run(gft.parallel.single_device)
print("clipped", float(one_infos.grad_norm.min()))  # above 0.5: clipping does something in every step

for name, form in FORMS.items():
    print(f"{name}.gradient", worst(gradient(*start(form, optax.sgd(1.0))), one_gradient))
    runner, state, infos, as_before = run(form, num_microbatches=2)
    print(f"{name}.state", worst(runner.fetch(state)._replace(step=0), one._replace(step=0)))
    print(f"{name}.losses", worst(infos.loss, one_infos.loss))
    print(f"{name}.layout", as_before)
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
    print(f"{name}.share", held / sum(leaf.nbytes for leaf in jax.tree.leaves(state)))

try:
    runner.step(
        state, runner.place(base_params), jax.tree.map(lambda leaf: leaf[: 2 * NUM_DEVICES - 1], batch(0))
    )
except ValueError as error:
    print("refused", error)
