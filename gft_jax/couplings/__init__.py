"""Couplings: the joint law of the two ends of a path, who is paired with whom within a batch.

A coupling is a function ``(key, x0, x1, cond=None, source_cond=None) -> Pairing``; ``apply`` moves the rows.
``independent()`` pairs at random, ``exact()`` at the least total squared distance, ``sinkhorn()`` by drawing
from the entropic transport plan, ``unbalanced()`` from one that gives outliers less weight. For straight conditional
paths ``E int |v|^2 dt <= E |x1 - x0|^2``, with equality at the optimal coupling: shorter, straighter paths are what
optimal pairing buys. Where the drift is told conditions, wrap it: ``respecting_labels(exact())``. Where a base
is fine-tuned, ``seen_through(exact(), flow)`` pairs noise with the data that are near to what the base makes of it. On
many devices the plan is one over all rows, also inside ``pmap`` (``over_axis``), or one a share (``per_shard``).
``fit_semidiscrete`` and ``choose`` pair with a whole dataset instead: `gft_jax.pairing.chosen_batches`.
"""

from gft_jax.couplings.base import MAX_ROWS, Coupling, Pairing, PenalisedCoupling, apply
from gft_jax.couplings.conditional import (
    matching_conditions,
    matching_labels,
    respecting_conditions,
    respecting_labels,
)
from gft_jax.couplings.devices import over_axis, per_shard
from gft_jax.couplings.diagnostics import Diagnostics, diagnose, require_converged
from gft_jax.couplings.exact import exact
from gft_jax.couplings.independent import independent
from gft_jax.couplings.rounding import Plan, Rounding, drawn, one_to_one
from gft_jax.couplings.seen_through import SourceMap, seen_through
from gft_jax.couplings.semidiscrete import SemidiscretePotentials, choose
from gft_jax.couplings.semidiscrete_fit import fit_semidiscrete
from gft_jax.couplings.sinkhorn import sinkhorn
from gft_jax.couplings.unbalanced import unbalanced

__all__ = [
    "MAX_ROWS",
    "Coupling",
    "Diagnostics",
    "Pairing",
    "PenalisedCoupling",
    "Plan",
    "Rounding",
    "SemidiscretePotentials",
    "SourceMap",
    "apply",
    "choose",
    "diagnose",
    "drawn",
    "exact",
    "fit_semidiscrete",
    "independent",
    "matching_conditions",
    "matching_labels",
    "one_to_one",
    "over_axis",
    "per_shard",
    "require_converged",
    "respecting_conditions",
    "respecting_labels",
    "seen_through",
    "sinkhorn",
    "unbalanced",
]
