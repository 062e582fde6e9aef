"""Couplings: the joint law of the two ends of a path, who is paired with whom within a batch.

A coupling is a function ``(key, x0, x1, cond=None, source_cond=None) -> Pairing``; ``apply`` moves the rows.
``independent()`` pairs at random, ``exact()`` at the least total squared distance, ``sinkhorn()`` by drawing
from the entropic transport plan. For straight conditional paths ``E int |v|^2 dt <= E |x1 - x0|^2``, with
equality at the optimal coupling: shorter, straighter paths are what optimal pairing buys.
"""

from gft_jax.couplings.base import Coupling, Pairing, apply
from gft_jax.couplings.exact import exact
from gft_jax.couplings.independent import independent
from gft_jax.couplings.sinkhorn import sinkhorn

__all__ = ["Coupling", "Pairing", "apply", "exact", "independent", "sinkhorn"]
