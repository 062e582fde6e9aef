"""The log-ratio of target and base that the terminal methods weight by, and how many samples its weights are worth."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs.terminal import Terminal
from experiments.data.shifted import ShiftedData
from experiments.data.toy2d import log_density
from experiments.run_folder import RunFolder
from experiments.terminal.tempered import TemperedLaws
from gft_jax.density_ratio import DensityRatio, effective_sample_size, fit_density_ratio

RATIO_SEED = 20_261_122
WEIGHTS = tuple(np.linspace(0.05, 1.0, 20).round(2).tolist())
"""Target weights at which the effective sample size is logged."""


def ratio_of(config: Terminal, target: np.ndarray, base: np.ndarray) -> DensityRatio:
    """The log-ratio from target samples and samples of the base, always by the same split and start."""
    return fit_density_ratio(
        target,
        base,
        jax.random.key(RATIO_SEED),
        hidden=config.ratio_width,
        num_steps=config.ratio_steps,
    )


def record_ratio(
    folder: RunFolder,
    config: Terminal,
    ratio: DensityRatio,
    data: ShiftedData,
    base: np.ndarray,
    laws: TemperedLaws | None,
) -> None:
    """Logs the effective sample size of the weights by target weight, and what is known of the ratio's error.

    The weights are ``exp(-(1 - w) l)`` on the target samples and ``exp(w l)`` on those of the base. Held-out loss and
    number of steps of the classifier go to config.json; in the plane also ``ratio_rmse_target`` and
    ``ratio_rmse_halfway``, root mean squared differences to the log-ratio of the two laws of the data where it is
    finite, on held-out target points and on points of the law q^0.5 p^0.5.
    """
    first = config.seeds[0]
    values = {
        rows: np.asarray(ratio.log_ratio(jnp.asarray(x)), np.float64)
        for rows, x in (("target", data.target), ("base", base))
    }
    for step, weight in enumerate(WEIGHTS):
        exponents = {"target": (weight - 1) * values["target"], "base": weight * values["base"]}
        sizes = {f"{rows}_rows": effective_sample_size(logs) for rows, logs in exponents.items()}
        folder.log_once(
            {
                "kind": "effective sample size",
                "seed": first,
                "step": step,
                "target_weight": weight,
                **sizes,
            }
        )
    facts = {"ratio_log_loss": round(ratio.log_loss, 4), "ratio_steps_kept": ratio.num_steps}
    if laws is not None:
        for rows, points in (("target", data.held_out), ("halfway", laws.draw(0.5, len(data.held_out)))):
            error = np.asarray(ratio.log_ratio(jnp.asarray(points))) - _known(config, points)
            facts[f"ratio_rmse_{rows}"] = round(float(np.sqrt(np.mean(error[np.isfinite(error)] ** 2))), 3)
    folder.add_facts(facts)


def _known(config: Terminal, points: np.ndarray) -> np.ndarray:
    return log_density(config.target, points) - log_density(config.source, points)
