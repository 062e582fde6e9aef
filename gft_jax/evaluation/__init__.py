"""Evaluation of a fine-tuned flow: the report card, and sample quality against the evaluations that it costs."""

from gft_jax.evaluation.arguments import LEAST_SAMPLES
from gft_jax.evaluation.card import report_card
from gft_jax.evaluation.contents import CardArrays, Measure, ReportCard
from gft_jax.evaluation.nfe import AVERAGE_VELOCITY, NfeCurve, NfePoint, nfe_curve
from gft_jax.evaluation.table import cells, markdown

__all__ = [
    "AVERAGE_VELOCITY",
    "LEAST_SAMPLES",
    "CardArrays",
    "Measure",
    "NfeCurve",
    "NfePoint",
    "ReportCard",
    "cells",
    "markdown",
    "nfe_curve",
    "report_card",
]
