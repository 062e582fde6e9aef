"""The kinds of data that an experiment of several can be run on, each with defaults of its own."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

Domain = Literal["toy2d", "digits"]

Config = TypeVar("Config")


def defaults_for(defaults: Mapping[Domain, Config], arguments: Sequence[str]) -> Config:
    """Default settings of the domain that ``--domain`` names on the command line, or else of the first.

    A name that is none is left to the parser of the flags.
    """
    given = [
        after if word == "--domain" else word.removeprefix("--domain=")
        for word, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if word == "--domain" or word.startswith("--domain=")
    ]
    named = [config for domain, config in defaults.items() if given and domain == given[-1]]
    return [*named, *defaults.values()][0]
