"""Run by test_couplings_devices.py in a process of its own, with several fake devices: plans over devices."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ends import two_ends
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gft_jax as gft
from gft_jax.couplings import (
    Pairing,
    apply,
    exact,
    independent,
    one_to_one,
    over_axis,
    per_shard,
    respecting_labels,
    sinkhorn,
    unbalanced,
)

NUM_DEVICES, NAMES = int(sys.argv[1]), sys.argv[2:]
ROWS, LOCAL = 8 * NUM_DEVICES, 8
AXIS = "devices"
KEY = jax.random.key(3)
SHARD_MAPPED = ("exact", "one-to-one", "unbalanced")  # pmap is the same underneath
MAKE = {
    "independent": independent,
    "exact": exact,
    "labels": lambda: respecting_labels(exact()),
    "sinkhorn": sinkhorn,
    "one-to-one": lambda: sinkhorn(rounding=one_to_one),
    "unbalanced": unbalanced,
}
assert jax.local_device_count() == NUM_DEVICES, jax.local_devices()
mesh = jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
BY_ROWS = PartitionSpec(AXIS)
rng = np.random.default_rng(1)
ends = (*two_ends(ROWS), {"label": rng.integers(0, 3, ROWS)}, rng.integers(0, 2, ROWS))
sharded = jax.device_put(ends, NamedSharding(mesh, BY_ROWS))
SPECS = Pairing(*(BY_ROWS,) * 3, *(PartitionSpec(),) * 4)


def done(program, *arguments):
    """Fake devices must not run ahead of each other."""
    return jax.block_until_ready(program(*arguments))


def split(tree):
    return jax.tree.map(lambda leaf: leaf.reshape(NUM_DEVICES, LOCAL, *leaf.shape[1:]), tree)


def joined(tree):
    return jax.tree.map(lambda leaf: leaf.reshape(ROWS, *leaf.shape[2:]), tree)


def difference(one, other):
    """Largest difference, relative where leaves exceed one; inf where any index, label or truth value differs."""
    worst = 0.0
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape
        if np.issubdtype(ours.dtype, np.floating):
            worst = max(worst, float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1)))
        elif (ours != theirs).any():
            return np.inf
    return worst


def largest_collective(program):
    """Entries of the largest array that a compiled program exchanges between devices."""
    sizes = [0]
    for line in program.as_text().splitlines():
        found = re.search(r"= (.*?) (all-|collective-|reduce-scatter)", line)
        if found:
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sizes += [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
    return max(sizes)


def compare(name):
    coupling = MAKE[name]()
    local = per_shard(coupling, NUM_DEVICES)
    one, one_local = jax.jit(lambda *ends: (coupling(KEY, *ends), local(KEY, *ends)))(*ends)
    report = {
        "sharded": difference(done(jax.jit(lambda *ends: coupling(KEY, *ends)), *sharded), one),
        "cost": one.cost,
        "local_cost": one_local.cost,
        "abroad": np.mean(one.source_index // LOCAL != one.target_index // LOCAL),
        "local_abroad": np.mean(one_local.source_index // LOCAL != one_local.target_index // LOCAL),
    }
    program = jax.jit(lambda *ends: local(KEY, *ends)).lower(*sharded).compile()
    report["local_sharded"] = difference(done(program, *sharded), one_local)
    report["local_exchange"] = largest_collective(program)

    def on_each(x0, x1, cond, source_cond):
        # Keys that differ by mistake: that of the first device counts.
        device = jax.lax.axis_index(AXIS)
        key = jax.random.wrap_key_data(jax.random.key_data(KEY) + device.astype(jnp.uint32))
        whole = over_axis(coupling, AXIS)(key, x0, x1, cond, source_cond)
        return *whole, coupling(jax.random.fold_in(KEY, device), x0, x1, cond, source_cond)

    pairing, rows, own = done(jax.pmap(on_each, AXIS), *split(ends))
    scalars = {field: getattr(pairing, field) for field in Pairing._fields[3:]}
    assert all((value == value[0]).all() for value in scalars.values())
    scalars = {field: value[0] for field, value in scalars.items()}
    report["pmapped"] = difference(
        (joined(pairing._replace(**dict.fromkeys(scalars)))._replace(**scalars), joined(rows)),
        (one, apply(one, *ends)),
    )
    report["local_pmapped"] = difference(
        joined(own.source_index + LOCAL * np.arange(NUM_DEVICES)[:, None]), one_local.source_index
    )
    if name not in SHARD_MAPPED:
        return report

    mapped = jax.shard_map(
        lambda *ends: over_axis(coupling, AXIS)(KEY, *ends),
        mesh=mesh,
        in_specs=BY_ROWS,
        out_specs=(SPECS, BY_ROWS),
        check_vma=False,
    )
    report["shard_mapped"] = difference(done(jax.jit(mapped), *ends), (one, apply(one, *ends)))
    return report


def train():
    """A step of gradient descent at rate 1 on many devices, against the gradient on one, of batches of a stream."""

    def drift(params, t, x, cond=None):
        return x @ params["matrix"] + t[:, None] * params["slope"]

    params = {"matrix": jnp.eye(3), "slope": jnp.ones(3)}
    objective = gft.objectives.flow_matching(drift)
    cooling = gft.cooling.constant(temperature=0.0)
    runner = gft.parallel.pmapped(gft.finetuner(objective, optax.sgd(1.0), cooling))
    gradient = jax.jit(jax.grad(gft.mean_loss, argnums=1, has_aux=True), static_argnums=0)
    x1 = np.random.default_rng(0).normal(2.0, 1.0, (64, 3)).astype(np.float32)

    def batch(coupling):
        return gft.pairing.batches(x1, batch_size=ROWS, seed=0, coupling=coupling).batch(0)

    drawn, exactly, locally = batch(None), batch(exact()), batch(per_shard(exact(), NUM_DEVICES))
    one, many = {}, {}
    for name, rows in (("exact", exactly), ("local", locally)):
        state, _ = done(runner.step, runner.init(jax.random.key(0), None, params), None, rows)
        many[name] = jax.tree.map(lambda old, new: old - new, params, runner.fetch(state.params))
        one[name], _ = gradient(objective, params, None, rows, 0.0)
    share = slice(LOCAL, 2 * LOCAL)  # what one of the devices is given
    alone = exact()(KEY, drawn.x0[share], drawn.x1[share])
    _, rows = done(jax.pmap(over_axis(exact(), AXIS), AXIS, in_axes=(None, 0, 0)), KEY, *split(drawn[:2]))
    return {
        "exact": difference(many["exact"], one["exact"]),
        "local": difference(many["local"], one["local"]),
        "apart": difference(one["exact"], one["local"]),
        "own_pairs": difference(locally.x0[share], drawn.x0[share][alone.source_index]),
        "inside": difference(joined(rows[:2]), exactly[:2]),
    }


for name in NAMES:
    for check, value in (train() if name == "training" else compare(name)).items():
        print(f"{name}:{check} {float(value)}")
