"""The semi-discrete coupling of a run: fitted once, kept in the run folder, found there when the run is continued."""

import time

import jax
import jax.numpy as jnp
import numpy as np

import gft_jax as gft
from experiments.loop import Stopped, found, keep
from experiments.run_folder import RunFolder
from gft_jax.couplings import SemidiscretePotentials

SEED = 20_261_122


def potentials_of_run(folder: RunFolder, target: np.ndarray, seed: int) -> SemidiscretePotentials:
    """Potentials between noise and the data of fine-tuning, from ``RUN/coupling`` or fitted now, and logged then.

    Args:
        folder: of the run.
        target: data of fine-tuning ``[num, *event]``.
        seed: under which the fit is logged; the fit itself is the same for all seeds.

    Raises:
        Stopped: if the marginal error is not within the tolerance; nothing is kept then.
    """
    path, source = folder.path / "coupling", gft.pairing.standard_normal(target.shape[1:])
    rows, scalar = jnp.zeros(len(target), target.dtype), jnp.zeros((), target.dtype)
    like = SemidiscretePotentials(rows, rows, scalar, scalar, scalar, jnp.asarray(False))
    kept = found(path, like)
    if kept is not None:
        return kept
    started = time.perf_counter()
    potentials = gft.couplings.fit_semidiscrete(jax.random.key(SEED), target, source)
    try:
        gft.couplings.require_converged(potentials)
    except ValueError as error:
        raise Stopped(
            f"the semi-discrete coupling does not converge on this data, give another --coupling: {error}"
        ) from error
    keep(path, potentials)
    folder.log_once(
        {
            "kind": "semi-discrete coupling",
            "seed": seed,
            "rows": len(target),
            "cost": float(potentials.cost),
            "marginal_error": float(potentials.marginal_error),
            "seconds": round(time.perf_counter() - started, 1),
        }
    )
    return potentials
