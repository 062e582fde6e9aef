"""Sampling with the library beside torchdiffeq and torchdyn: same network, same weights, same points, float32.

The network is torchcfm's MLP, in the wrapper by which torchcfm hands it to both solvers, under ``torch.no_grad()``. Its
weights come from 500 steps of flow matching on moons with the library, and are copied. torch has as many threads as
there are cores for JAX.

dopri5 controls its steps in both by the root mean square of the error over the batch. Equal tolerances do not quite
mean equal errors, so that the errors of both are told: root mean squares, against the library at a tolerance of 1e-7.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torchcfm.models import MLP  # pyright: ignore[reportMissingImports]
from torchcfm.utils import torch_wrapper  # pyright: ignore[reportMissingImports]
from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]
from torchdyn.core import NeuralODE  # pyright: ignore[reportMissingImports]

from experiments.benchmarks import sampling
from experiments.benchmarks.against_torchcfm import check_same_function, params_of
from experiments.benchmarks.interleaved import (
    Comparison,
    Entrant,
    Outcome,
    compare,
    rounds_at,
    seconds_per_step,
)
from experiments.plain_mlp import PlainMLP, selu_by_tanh

NUM_POINTS = 10_000
TRAINING_STEPS = 500
TOLERANCES = (1e-4, 1e-5)
TITLE = (
    f"Sampling {NUM_POINTS} points in the plane by a MLP, times of a call: Euler-{sampling.NUM_STEPS}, dopri5"
)


def load(model: Any, params: Any) -> None:
    """Copies the parameters of `PlainMLP` into torchcfm's MLP."""
    linear = [layer for layer in model.net if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for number, layer in enumerate(linear):
            layer.weight.copy_(torch.from_numpy(np.array(params[f"layer_{number}"]["kernel"].T)))
            layer.bias.copy_(torch.from_numpy(np.array(params[f"layer_{number}"]["bias"])))


def euler_outcomes(setting: str, model: Any, params: Any, x0: np.ndarray, rounds: int) -> list[Outcome]:
    """The library beside a bare scan, torchdiffeq and torchdyn."""
    width, velocity, points = len(params["layer_0"]["bias"]), torch_wrapper(model), torch.from_numpy(x0)
    grid = torch.linspace(0, 1, sampling.NUM_STEPS + 1)
    node = NeuralODE(velocity, solver="euler")

    def of_jax(sample: sampling.Euler) -> Callable[[], np.ndarray]:
        start = jnp.asarray(x0)
        return lambda: np.asarray(sample(params, start))

    @torch.no_grad()
    def by_torchdiffeq() -> np.ndarray:
        return odeint(velocity, points, grid, method="euler")[-1].numpy()

    @torch.no_grad()
    def by_torchdyn() -> np.ndarray:
        return node.trajectory(points, grid)[-1].numpy()

    samplers = {
        "library": of_jax(sampling.euler(PlainMLP(width))),
        "by hand": of_jax(sampling.euler_by_hand(PlainMLP(width))),
        "tanh": of_jax(sampling.euler(PlainMLP(width, selu_by_tanh))),
        "torchdiffeq": by_torchdiffeq,
        "torchdyn": by_torchdyn,
    }
    apart = sampling.largest_difference({name: sample() for name, sample in samplers.items()}, 1e-4)
    seconds = seconds_per_step({name: Entrant(run, 1) for name, run in samplers.items()}, rounds, warm_ups=1)
    asked = [
        Comparison("library / by hand", "library", "by hand", at_most=1.05),
        Comparison("torchdiffeq / library", "torchdiffeq", "library", at_least=1.6),
        Comparison("torchdyn / library", "torchdyn", "library", at_least=1.6),
        Comparison("torchdiffeq / library, SELU by tanh", "torchdiffeq", "tanh"),
    ]
    return [compare(f"{setting}, Euler, equal to {apart:.0e}", comparison, seconds) for comparison in asked]


def dopri5_outcome(
    setting: str, model: Any, params: Any, x0: np.ndarray, tolerance: float, rounds: int
) -> Outcome:
    """The library beside torchdiffeq, both as they come but for the tolerance.

    Raises:
        ValueError: if a root mean square error is above 100 tolerances, or the library's above twice torchdiffeq's.
    """
    module, velocity = PlainMLP(len(params["layer_0"]["bias"])), torch_wrapper(model)
    start, points, ends = jnp.asarray(x0), torch.from_numpy(x0), torch.tensor([0.0, 1.0])
    sample, num_calls = sampling.dopri5(module, tolerance), 0

    def counted(t: Any, x: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return velocity(t, x)

    @torch.no_grad()
    def by_torchdiffeq(velocity: Any = velocity) -> np.ndarray:
        return odeint(velocity, points, ends, method="dopri5", rtol=tolerance, atol=tolerance)[-1].numpy()

    ours, theirs = sample(params, start), by_torchdiffeq(counted)
    exact = np.asarray(sampling.dopri5(module, 1e-7)(params, start).x)
    errors = [sampling.rms(x - exact) for x in (theirs, np.asarray(ours.x))]
    if not (max(errors) <= 100 * tolerance and errors[1] <= 2 * errors[0]):
        raise ValueError(
            f"nothing is measured, since dopri5 at tolerance {tolerance:g} does not lead to the same points: root mean "
            f"square errors {errors[0]:.2g} (torchdiffeq) and {errors[1]:.2g} (library)"
        )
    name = (
        f"torchdiffeq ({num_calls} evaluations, error {errors[0]:.1e}) / "
        f"library ({ours.num_evaluations}, {errors[1]:.1e})"
    )
    samplers = {
        "torchdiffeq": by_torchdiffeq,
        "library": lambda: jax.block_until_ready(sample(params, start)),
    }
    seconds = seconds_per_step({name: Entrant(run, 1) for name, run in samplers.items()}, rounds, warm_ups=1)
    apart = np.max(np.abs(theirs - ours.x))
    comparison = Comparison(name, "torchdiffeq", "library", at_least=1.4)
    return compare(f"{setting}, dopri5 at {tolerance:g}, equal to {apart:.0e}", comparison, seconds)


def measure(widths: Sequence[int], rounds: int) -> list[Outcome]:
    """Ratios of the times of a call, at each width.

    Raises:
        ValueError: if programs that are compared do not compute the same.
    """
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    torch.set_num_threads(cores)
    if cores > 1 and hasattr(os, "getloadavg") and os.getloadavg()[0] > 1:
        print(
            f"warning: other programs are running (load {os.getloadavg()[0]:.1f}). torch's threads wait for each "
            "other, and lose ten times more by it than the library: keep to one core with --one-core",
            file=sys.stderr,
        )
    torch.manual_seed(0)
    x0 = np.random.default_rng(0).standard_normal((NUM_POINTS, 2), np.float32)
    outcomes = []
    for width in widths:
        print(f"measuring width {width}", file=sys.stderr)
        model, module, setting = MLP(dim=2, w=width, time_varying=True), PlainMLP(width), f"width {width}"
        load(model, sampling.trained(module, params_of(model), TRAINING_STEPS))
        check_same_function(model, module)
        params, more = params_of(model), rounds_at(width, rounds)
        outcomes += euler_outcomes(setting, model, params, x0, more)
        outcomes += [dopri5_outcome(setting, model, params, x0, tolerance, more) for tolerance in TOLERANCES]
    return outcomes
