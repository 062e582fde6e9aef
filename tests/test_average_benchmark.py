"""That the benchmark of average velocities trains what it says. No speed is tested."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax as gft
from experiments.benchmarks import average, library
from experiments.benchmarks.__main__ import benchmark
from gft_jax.networks import ResidualMLP, SiT


def operations(tuner, work, base_params):
    """Floating-point operations of a compiled step, by the compiler."""
    state = jax.eval_shape(
        lambda params: tuner.init(jax.random.key(0), base_params and params, params), work.params
    )
    compiled = jax.jit(tuner.step).lower(state, base_params, work.batches[0]).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
def test_a_quarter_of_the_rows_costs_half_a_pass_and_the_base_a_whole_one():
    network = ResidualMLP(hidden=128, time_features=4, two_times=True)
    x1 = np.random.default_rng(0).standard_normal((64, 8, 8)).astype(np.float32)
    work = library.work(network, x1, 64, 1)
    t = jnp.zeros(64)
    velocity = gft.drifts.from_linen(network)
    forward = jax.jit(velocity).lower(work.params, t, work.batches[0].x0).compile().cost_analysis()["flops"]
    quarter, half = (operations(average.mean_flow(work, each), work, None) for each in (0.75, 0.5))
    with_base = operations(average.gradual_mean_flow(work, 0.75), work, work.params)
    # Value (but for the last layer) and derivative of a quarter more of the rows; the base on all.
    assert half - quarter == pytest.approx(2 * forward / 4, rel=0.1)
    assert with_base - quarter == pytest.approx(forward, rel=0.1)


@pytest.mark.slow
def test_every_program_trains_while_it_cools_and_the_default_has_the_bar(monkeypatch, tmp_path):
    small = {
        "SIT": SiT(8, 2, 2, 2, scan=True),
        "LATENT": (4, 4, 1),
        "SIT_BATCH": 4,
        "BATCH_SIZE": 8,
        "CHUNK": 3,
        "SAME_TIMES": average.SAME_TIMES[:2],
    }
    for name, value in small.items():
        monkeypatch.setattr(average, name, value)
    training, programs = library.training, []

    def told(step, state, batches, steps):
        infos = []
        programs.append((batches[0].x0.shape, steps, len(batches), infos))

        def step_and_tell(state, batch):
            state, info = step(state, batch)
            infos.append(info)
            return state, info

        return training(step_and_tell, state, batches, steps)

    monkeypatch.setattr(library, "training", told)
    benchmark("average", out=tmp_path, quick=True)

    blocks = {(8, 8, 8): 3, (4, 4, 4, 1): 1}
    assert [shape for shape, *_ in programs] == [shape for shape in blocks for _ in range(5)]
    for shape, steps, num_batches, infos in programs:
        assert steps == num_batches == blocks[shape]
        infos = jax.device_get(infos)
        assert all(info.is_finite and info.grad_norm > 0 for info in infos)
    cooled = [jax.device_get(infos[-1]).temperature > 1 for *_, infos in programs]
    assert cooled == 2 * [False, False, False, True, True]

    default = inspect.signature(gft.objectives.mean_flow).parameters["same_time"].default
    rows = [
        line.split(" | ") for line in (tmp_path / "average.md").read_text().splitlines() if " / flow" in line
    ]
    assert [row[0] for row in rows] == 4 * ["| residual, width 64"] + 4 * ["| SiT-S/2"]
    asked = {row[1]: row[4].strip() for row in rows}
    assert asked == {
        f"mean flow, same_time={default} / flow matching": "<= 2.2",
        f"gradual mean flow, same_time={default} / flow matching": "<= 2.2",
        "mean flow, same_time=0.5 / flow matching": "",
        "gradual mean flow, same_time=0.5 / flow matching": "",
    }
