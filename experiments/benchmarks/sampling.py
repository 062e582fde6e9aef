"""Sampling by the ODE with the library, and by a loop of Euler steps written by hand."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import gft_jax as gft
from experiments.plain_mlp import moons

NUM_STEPS = 100
_BATCH_SIZE = 256

Euler = Callable[[Any, jax.Array], jax.Array]
"""(params, x0 ``[num, dim]``) -> x1, compiled."""


def trained(module: linen.Module, params: Any, num_steps: int) -> Any:
    """Parameters after flow matching on moons: how many steps an adaptive solver takes depends on the field."""
    tuner = gft.finetuner(gft.objectives.flow_matching(gft.drifts.from_linen(module)), optax.adam(1e-3))
    runner = gft.parallel.single_device(tuner)
    stream = gft.pairing.batches(moons(), batch_size=_BATCH_SIZE, seed=0)
    state, _ = runner.step_many(
        runner.init(jax.random.key(0), params=params), None, stream.many(0, num_steps)
    )
    return state.params


def euler_by_hand(module: linen.Module) -> Euler:
    """100 Euler steps in a bare ``lax.scan``: what sampling would cost without the library."""

    @jax.jit
    def sample(params: Any, x0: jax.Array) -> jax.Array:
        def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            velocity: Any = module.apply({"params": params}, jnp.full(len(x), t), x)
            return x + velocity / NUM_STEPS, None

        return jax.lax.scan(step, x0, jnp.arange(NUM_STEPS, dtype=x0.dtype) / NUM_STEPS)[0]

    return sample


def euler(module: linen.Module) -> Euler:
    """The same by the library."""
    drift = gft.drifts.from_linen(module)
    return jax.jit(lambda params, x0: gft.sampling.sample_ode(drift, params, x0, num_steps=NUM_STEPS).x)


def dopri5(module: linen.Module, tolerance: float) -> Callable[[Any, jax.Array], gft.sampling.OdeSample]:
    """Adaptive steps for the whole batch, rtol = atol = tolerance, else as the library has it by default."""
    drift, controller = gft.drifts.from_linen(module), diffrax.PIDController(rtol=tolerance, atol=tolerance)

    @jax.jit
    def sample(params: Any, x0: jax.Array) -> gft.sampling.OdeSample:
        return gft.sampling.sample_ode(
            drift, params, x0, solver=diffrax.Dopri5(), stepsize_controller=controller
        )

    return sample


def rms(difference: np.ndarray) -> float:
    """Root mean square of all entries."""
    return float(np.sqrt(np.mean(difference**2)))


def largest_difference(results: dict[str, np.ndarray], allowed: float) -> float:
    """Largest difference of any result's entries from the first result's.

    Raises:
        ValueError: if it is above ``allowed``, since then the programs do not compute the same.
    """
    first, *others = results
    differences = {name: float(np.max(np.abs(results[name] - results[first]))) for name in others}
    wrong = {name: difference for name, difference in differences.items() if not difference <= allowed}
    if wrong:
        raise ValueError(
            f"nothing is measured, since results differ by more than {allowed:g} from those of {first}: {wrong}"
        )
    return max(differences.values())
