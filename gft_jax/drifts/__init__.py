"""Drifts: how they are called, made from the models of other libraries, guided, and turned into those of an SDE.

A drift is a pure function ``drift(params, t, x, cond=None)``; see `gft_jax.types.Drift`. ``from_linen``,
``from_nnx``, ``from_equinox`` and ``from_function`` give a model that form; ``from_convention`` turns one with another
time or another prediction (noise, data, score) into a velocity, ``in_data_units`` and ``in_normalised_units`` one of
scaled latents into one of the latents themselves, and back. ``blend`` and ``guide`` make one drift
of two evaluations: base and fine-tuned, unconditional and conditional. ``as_score`` and ``as_sde_drift`` lead from
a velocity to the drift of a stochastic process. ``in_precision`` computes a drift in bfloat16, ``rematerialised``
trades memory for evaluations. ``two_times`` makes an average velocity of a model with a second time,
``instantaneous`` a velocity of that again; ``lifted`` applies a combinator of drifts to one.
"""

from gft_jax.drifts.adapters import from_equinox, from_function, from_linen, from_nnx
from gft_jax.drifts.base import evaluate
from gft_jax.drifts.conventions import ModelTime, from_convention, model_time
from gft_jax.drifts.guidance import BlendParams, GuidanceParams, blend, guide
from gft_jax.drifts.precision import cast, in_precision, rematerialised
from gft_jax.drifts.stochastic import as_score, as_sde_drift
from gft_jax.drifts.two_times import evaluate_average, instantaneous, lifted, two_times
from gft_jax.drifts.units import in_data_units, in_normalised_units

__all__ = [
    "BlendParams",
    "GuidanceParams",
    "ModelTime",
    "as_score",
    "as_sde_drift",
    "blend",
    "cast",
    "evaluate",
    "evaluate_average",
    "from_convention",
    "from_equinox",
    "from_function",
    "from_linen",
    "from_nnx",
    "guide",
    "in_data_units",
    "in_normalised_units",
    "in_precision",
    "instantaneous",
    "lifted",
    "model_time",
    "rematerialised",
    "two_times",
]
