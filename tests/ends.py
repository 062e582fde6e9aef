"""Ends of small batches for the tests of couplings, and what is computed of them without the library."""

import numpy as np


def two_ends(rows=12, event=(2, 3), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x0, x1 = rng.standard_normal((2, rows, *event))
    return x0.astype(dtype), (1 + 2 * x1).astype(dtype)


def brute_cost(x0, x1):
    """Squared distances [x0, x1] in float64, entry by entry."""
    x0, x1 = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x0, x1))
    return ((x0[:, None] - x1[None]) ** 2).sum(-1)


def entropic_plan(cost, epsilon, source_penalty=np.inf, target_penalty=np.inf, num_iterations=5000):
    """The plan [x0, x1], in float64 by the multiplicative iteration; inf for a uniform marginal."""
    rows = len(cost)
    kernel = np.exp(-cost / epsilon) / rows**2
    powers = [1 / (1 + epsilon / penalty) for penalty in (source_penalty, target_penalty)]
    u = np.ones(rows)
    for _ in range(num_iterations):
        v = (1 / rows / (kernel.T @ u)) ** powers[1]
        u = (1 / rows / (kernel @ v)) ** powers[0]
    return u[:, None] * kernel * v[None, :]


def largest_z(index, law):
    """Over all cells ``[i, j]``: partners ``[draws, j]`` of row j against ``law[i, j]``, in standard errors."""
    draws, rows = index.shape
    counts = np.array([[np.sum(index[:, j] == i) for j in range(rows)] for i in range(rows)])
    return np.abs((counts - draws * law) / np.sqrt(draws * law * (1 - law) + 1e-9)).max()


def two_classes(seed, rows=32):
    """Standard normal noise; data about -2 and 2, by their label, in one dimension."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    x0, noise = rng.standard_normal((2, rows)).astype(np.float32)
    return x0, (np.where(label == 1, 2, -2) + 0.5 * noise).astype(np.float32), label
