"""How a flow that was fine-tuned for a reward is scored: always from the same noise, beside the base's own samples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import gft_jax as gft
from experiments.evaluator import NOISE_SEED, NUM_RETENTION_TIMES, Evaluate
from experiments.reward.problem import Problem
from gft_jax.types import Drift, Params

NUM_SAMPLES = 512


class Scorer:
    """Scores parameters beside those of the base; what is compiled serves all methods and strengths."""

    def __init__(self, drift: Drift, base_params: Params, problem: Problem, num_steps: int):
        """Samples of the base, ``base_samples``, and its velocities on its own paths.

        Args:
            drift: the network.
            base_params: of the base.
            problem: reward, judge and references.
            num_steps: Euler steps.
        """
        self._problem = problem
        noise, other_noise = jax.random.normal(
            jax.random.key(NOISE_SEED), (2, NUM_SAMPLES, *problem.data.shape[1:])
        )

        def rollout(params: Params, noise: Array = noise) -> Any:
            return gft.sampling.sample_ode(drift, params, noise, num_steps=num_steps, save_steps=True)

        @jax.jit
        def of_base(params: Params) -> Any:
            result = rollout(params)
            index = np.linspace(0, num_steps - 1, min(NUM_RETENTION_TIMES, num_steps)).astype(int)
            x = result.trajectory[index].reshape(-1, *noise.shape[1:])
            t = jnp.repeat(jnp.asarray(index / num_steps, x.dtype), len(noise))
            return result.x, rollout(params, other_noise).x, (drift(params, t, x, None), t, x)

        @jax.jit
        def measure(params: Params, retained: Any) -> Any:
            x = rollout(params).x
            return x, jnp.mean(problem.reward(x)), gft.metrics.velocity_distance(drift, params, *retained)

        *samples, self._retained = of_base(base_params)
        # A distance between laws needs other noise: samples of the same one depend on each other.
        self.base_samples, self._other_samples = map(np.asarray, samples)
        self._measure = measure

    def evaluate_at(self, strength: float | None) -> Evaluate:
        """Scores of parameters, and the samples they belong to.

        * ``reward``: mean reward;
        * ``displacement``: mean squared distance of samples from the base's of the same noise;
        * ``base_energy_distance``: energy distance to samples of the base from other noise;
        * ``diversity``: mean distance of two samples; ``vendi``: Vendi score under a Gaussian kernel;
        * ``precision``: share of samples near data;
        * ``retention``: root mean squared distance between drift and base drift on the base's sampling paths;
        * where tilted laws are known, ``equal_reward_energy_distance``: energy distance to the one that has the
          samples' mean reward, and for a strength lam ``tilted_energy_distance`` and ``tilted_w2``: to that for lam;
        * what the domain's judge says, and ``reward_gap``: the reward without the judged one.

        Args:
            strength: lam of the run; None where it has none.
        """
        problem, tilted = self._problem, self._problem.tilted
        metrics = gft.metrics
        law = None if tilted is None or strength is None else tilted.draw(strength, NUM_SAMPLES)

        def evaluate(params: Params) -> tuple[dict[str, float], np.ndarray]:
            samples, reward, retention = jax.device_get(self._measure(params, self._retained))
            scores = self.of_samples(samples) | {"reward": float(reward), "retention": float(retention)}
            apart = (samples - self.base_samples).reshape(len(samples), -1)
            scores["displacement"] = float(np.mean(np.sum(apart.astype(np.float64) ** 2, axis=1)))
            if law is not None:
                scores["tilted_energy_distance"] = metrics.energy_distance(samples, law)
                scores["tilted_w2"] = metrics.w2(samples, law)
            if tilted is not None:
                equal = tilted.strength_of(scores["reward"])
                other = None if equal is None else tilted.draw(equal, NUM_SAMPLES)
                if other is not None:
                    scores["equal_reward_energy_distance"] = metrics.energy_distance(samples, other)
            scores |= problem.judge(samples)
            if "judged_reward" in scores:
                scores["reward_gap"] = scores["reward"] - scores["judged_reward"]
            return scores, samples

        return evaluate

    def of_samples(self, samples: np.ndarray) -> dict[str, float]:
        """The scores of any samples: reward, distance to the base's, diversity, nearness to data.

        ``vendi`` is left out where the problem has no kernel, and for another number of samples than that of the
        others, which it would not compare with.
        """
        problem, metrics = self._problem, gft.metrics
        scores = {
            "reward": float(np.mean(problem.reward(jnp.asarray(samples)))),
            "base_energy_distance": metrics.energy_distance(samples, self._other_samples),
            "diversity": metrics.mean_pairwise_distance(samples),
            "precision": metrics.prdc(samples, problem.data[:NUM_SAMPLES]).precision,
        }
        if problem.kernel is not None and len(samples) == NUM_SAMPLES:
            scores["vendi"] = metrics.vendi_score(samples, problem.kernel)
        return scores
