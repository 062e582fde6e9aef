"""Reflow: pairs (x0, flow(x0)) of a model, kept on disk, and batches of them that straighten its paths::

    def sample(params, x0, cond):
        return gft.sampling.sample_ode(drift, params, x0, cond=cond, num_steps=100).x

    source = gft.pairing.standard_normal((2,))
    pairs = gft.reflow.make_pairs("pairs", sample, params, source, num_pairs=50_000, seed=0)
    stream = gft.reflow.batches(pairs, batch_size=256, seed=0)

Flow matching (`gft_jax.objectives.flow_matching`) on these batches, started at the model's parameters, is one round.
The lines between such pairs cross less than those between independent ends, so that the new flow is straighter, and one
step of it ends nearer to its end. With exact velocities both flows have the same end law and the new one no larger
transport cost; errors of training add up from round to round. A further round makes pairs of the new parameters in
another directory.

Source: Liu, Gong and Liu, "Flow straight and fast: learning to generate and transfer data with rectified flow",
arXiv:2209.03003.
"""

from gft_jax.reflow.pairs import Pairs, make_pairs, open_pairs
from gft_jax.reflow.stream import batches

__all__ = ["Pairs", "batches", "make_pairs", "open_pairs"]
