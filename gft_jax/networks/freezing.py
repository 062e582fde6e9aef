"""Training of some parameters alone, chosen by patterns of their names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from gft_jax.networks.leaf_names import checked_patterns, matching, named_leaves


def freeze(optimizer: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """The optimiser for all parameters but those that match: these stay as they are, bit for bit.

    No state of the optimiser is kept for them, and what looks at all gradients, as clipping by their norm does, sees
    the others alone. The norm that `gft_jax.StepInfo` reports is of all. Their gradients are formed all the same; to
    save these too see `gft_jax.networks.lora`.

    Args:
        optimizer: of the others.
        patterns: names of parameters as in a shell, such as ``["time/*", "*/bias"]``; ``*`` stands for any characters,
            ``/`` included.

    Raises:
        ValueError: for a string instead of a sequence; from ``init``, if a pattern matches nothing, naming the
            parameters that exist, or nothing is left to train.
    """
    patterns = checked_patterns("patterns", patterns)
    return _of(optimizer, lambda names: set(names) - set(matching("patterns", patterns, names)))


def freeze_all_but(
    optimizer: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """The optimiser for those parameters that match alone; otherwise as `freeze`."""
    patterns = checked_patterns("patterns", patterns)
    return _of(optimizer, lambda names: set(matching("patterns", patterns, names)))


def _of(
    optimizer: optax.GradientTransformation, trained_among: Callable[[Sequence[str]], set[str]]
) -> optax.GradientTransformation:
    def labels(params: Any) -> Any:
        names = list(named_leaves(params))
        trained = trained_among(names)
        if not trained:
            raise ValueError("every parameter is frozen: leave some to train")
        labels_by_leaf = ["trained" if name in trained else "frozen" for name in names]
        return jax.tree.unflatten(jax.tree.structure(params), labels_by_leaf)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
