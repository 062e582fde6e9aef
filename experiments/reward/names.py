"""Names of methods and runs of the reward experiment, and what they say.

A method is ``am-K`` or ``am-full`` (deterministic adjoint matching on the last K steps, or on all, under the
quadratic cost), either with ``-pP`` (under the norm power P), ``memoryless``, ``draft-K``, ``orw`` or
``value-guidance``. A run is a method at a strength, ``am-3@0.5``.
"""

import difflib
import math
import re
from typing import NamedTuple

_PATTERN = re.compile(
    r"(?:(?P<family>memoryless|orw|value-guidance)|am-(?P<steps>\d+|full)(?:-p(?P<power>[^@]+))?|draft-(?P<draft>\d+))"
)
EXAMPLES = ("am-3", "am-full", "am-10-p3", "memoryless", "draft-3", "orw", "value-guidance")


class Method(NamedTuple):
    """A method of reward fine-tuning, without its strength."""

    name: str
    family: str
    """``am``, ``memoryless``, ``draft``, ``orw`` or ``value-guidance``."""
    truncation: int | None = None
    """Number of last steps that are trained; None for all."""
    power: float = 2.0
    """Power of the cost."""

    @property
    def has_cost_weight(self) -> bool:
        """Whether the strength is lam, the price of control in units of reward: the smaller, the stronger."""
        return self.family != "orw"


def parse_method(name: str) -> Method:
    """What the name of a method says; its own name is the shortest that says the same.

    Raises:
        ValueError: for a name that is none, or a power that is not above 1.
    """
    match = _PATTERN.fullmatch(name)
    if match is None:
        close = difflib.get_close_matches(name, EXAMPLES, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"--methods names {name!r}. {hint}There are am-K, am-full, am-K-pP, am-full-pP, memoryless, draft-K, "
            "orw and value-guidance, with K a number of steps and P a power"
        )
    if match["family"]:
        return Method(name, match["family"])
    if match["draft"]:
        truncation = int(match["draft"])
        return Method(f"draft-{truncation}", "draft", truncation)
    truncation = None if match["steps"] == "full" else int(match["steps"])
    power = 2.0 if match["power"] is None else _number(match["power"])
    if not 1 < power < math.inf:
        raise ValueError(
            f"--methods names {name}, whose power is {match['power']}; allowed is a finite number above 1"
        )
    steps, cost = "full" if truncation is None else truncation, "" if power == 2 else f"-p{power:.12g}"
    return Method(f"am-{steps}{cost}", "am", truncation, power)


def check_truncation(method: Method, num_steps: int) -> None:
    """Refuses a truncation that the paths do not have.

    Raises:
        ValueError: naming the range.
    """
    if method.truncation is not None and not 1 <= method.truncation <= num_steps:
        raise ValueError(
            f"--methods names {method.name}, which trains the last {method.truncation} steps; allowed is 1 to "
            f"--sampling-steps, {num_steps}"
        )


def split_run(name: str) -> tuple[str, float | None]:
    """Method and strength of ``METHOD@STRENGTH``; the strength is None where there is none.

    Raises:
        ValueError: for a strength that is not a positive, finite number.
    """
    method, at, text = name.partition("@")
    if not at:
        return method, None
    strength = _number(text)
    if not 0 < strength < math.inf:
        raise ValueError(
            f"--methods names {name}, whose strength is {text or 'empty'}; allowed is a finite number above 0"
        )
    return method, strength


def run_name(method: str, strength: float) -> str:
    """``METHOD@STRENGTH``."""
    return f"{method}@{strength:.12g}"


def _number(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)  # Python reads 1_5 as 15
    except ValueError:
        return math.nan
