"""Couplings that respect conditions: optimal pairs, without harm to what is generated for each condition.

Plain optimal transport looks at the ends alone. A class of the data then gets the part of the noise that lies near
it, ``p(x0 | cond) != p(x0)``, while sampling starts from ``x0 ~ p0`` for whatever condition is asked for: from
points that the flow of this class was never trained on. Two ways to respect conditions, for labels and for numbers:

* ``respecting_...``: conditions of one end, of which the other end knows nothing. Noise and labelled data; or a source
  whose mode the drift is told (``source_cond``), and data without labels. The rows are first paired at random, and
  each row of the one end bears the condition of its random partner; then pairs are formed between rows that bear
  equal, or near, conditions. Each label has a random subset of the other end to itself: ``p(x0 | cond) = p(x0)`` for
  conditions of x1, ``p(x1 | source_cond) = p(x1)`` for those of x0, and with both given, both.
* ``matching_...``: both ends have conditions of one kind, and pairs shall agree: night and day of one place.

In both, the penalty on the conditions is added to the cost of an inner coupling: `exact`, `sinkhorn`, `unbalanced`, or
again one of these. For one out of several conditions there is ``select``:
``respecting_labels(exact(), select=lambda cond, source_cond: (cond["label"], None))``.
"""

import math

from gft_jax.couplings.base import PenalisedCoupling
from gft_jax.couplings.penalties import (
    Select,
    distance_penalty,
    inherited,
    label_penalty,
    matched,
    penalised_by,
)


def respecting_labels(
    coupling: PenalisedCoupling, *, weight: float | int = math.inf, select: Select | None = None
) -> PenalisedCoupling:
    """Pairs within each class: a class takes a random subset of the other end, and is coupled with that alone.

    The inner coupling minimises ``|x0_i - x1_j|^2 / m + weight [label_i != label_j]``, m the mean squared distance of
    the batch and ``label_i`` that of the row which ``x0_i`` is paired with at random (see the module). With an
    infinite weight, the default, pairs never leave their class, so that ``p(x0 | label) = p(x0)`` holds for every
    batch size. What it takes: a class of k rows in the batch is coupled as a batch of k rows, and its paths are as long
    as those of so small a batch; with one row a class it is the independent coupling. A finite weight lies between that
    and the plain coupling, which is ``weight = 0``: shorter paths, at a bias towards the noise near to the class.

    Labels are integers or booleans of any dtype, ``[rows, ...]``; several leaves, or entries of a row, count as one
    label, that of their combination. Under classifier-free guidance the coupling sees the labels before they are
    dropped (`gft_jax.pairing.batches`).

    Args:
        coupling: the inner coupling.
        weight: what a mismatch costs, in units of the mean squared distance, >= 0.
        select: picks the labels out of ``cond`` and ``source_cond``; by default all there are.

    Raises:
        ValueError: for a negative weight, an inner coupling that takes no penalty; when called, for no labels at
            all, labels that are not integers, or another number of them than there are rows.

    Source: Cheng and Schwing, "The curse of conditions: analyzing and improving optimal transport for conditional
    flow-based generation", arXiv:2503.10636. There, too, the rows of x0 inherit the conditions of random partners.
    """
    return penalised_by(coupling, label_penalty(weight), inherited, "labels", select)


def matching_labels(
    coupling: PenalisedCoupling, *, weight: float | int = math.inf, select: Select | None = None
) -> PenalisedCoupling:
    """Pairs rows of equal labels, ``source_cond`` of x0 and ``cond`` of x1.

    The inner coupling minimises ``|x0_i - x1_j|^2 / m + weight [source_label_i != label_j]``. With an infinite weight
    `exact` pairs as many equal labels as their counts allow, and the rest at the least cost; `sinkhorn` and
    `unbalanced` need equal counts of every label at both ends then, or else report ``converged = False``: give them a
    finite weight. Arguments and errors as for `respecting_labels`; both ends must have labels, of one structure.
    """
    return penalised_by(coupling, label_penalty(weight), matched, "labels", select)


def respecting_conditions(
    coupling: PenalisedCoupling, *, weight: float | int, select: Select | None = None
) -> PenalisedCoupling:
    """Pairs rows whose continuous conditions are near to each other, those of one end being inherited at random.

    The inner coupling minimises ``|x0_i - x1_j|^2 / m + weight |c_i - c_j|^2 / m_c``, ``c_i`` the condition of the row
    which ``x0_i`` is paired with at random (see the module), m and ``m_c`` the means over all pairs of the batch. No
    two conditions are equal, so that nothing can be exchanged without any bias: the weight goes from the plain coupling
    (0: shortest paths, ``p(x0 | c)`` skewed the most) to the independent one (inf: no skew). A batch of n rows with
    conditions of k dimensions has neighbours at a distance of about ``n^(-1/k)``: larger batches bear larger weights,
    and as n and then the weight grow, the result is conditional optimal transport, without bias.

    An example: x0 and c standard normal, ``x1 = c + 0.5 noise``, and batches so large that they count as the laws. The
    correlation of x0 with its condition is 0.89 at weight 0, 0.52 at 1, 0.09 at 10, 0.01 at 100.

    Args:
        coupling: the inner coupling.
        weight: see above, >= 0 and finite.
        select: picks the conditions out of ``cond`` and ``source_cond``; by default all there are. Their leaves are
            numbers ``[rows, ...]`` in one common unit: the squared distance is summed over all of them.

    Raises:
        ValueError: for a negative or infinite weight, an inner coupling that takes no penalty; when called, for no
            conditions at all, conditions that are not floating-point, or another number of them than there are rows.

    Source: arXiv:2503.10636, as for `respecting_labels`; conditional optimal transport: Kerrigan et al., "Dynamic
    conditional optimal transport through simulation-free flows", arXiv:2404.04240.
    """
    return penalised_by(coupling, distance_penalty(weight), inherited, "numbers", select)


def matching_conditions(
    coupling: PenalisedCoupling, *, weight: float | int, select: Select | None = None
) -> PenalisedCoupling:
    """Pairs rows whose continuous conditions are near, ``source_cond`` of x0 and ``cond`` of x1.

    The inner coupling minimises ``|x0_i - x1_j|^2 / m + weight |source_c_i - c_j|^2 / m_c``. Arguments and errors as
    for `respecting_conditions`; both ends must have conditions, of one structure.
    """
    return penalised_by(coupling, distance_penalty(weight), matched, "numbers", select)
