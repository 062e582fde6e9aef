"""Samples for the tests of metrics, and how far a mean over repeats is from what it should be."""

import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def z_score(values, expected):
    """Distance of the mean of independent values from the expected one, in standard errors."""
    values = np.asarray(values)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))
