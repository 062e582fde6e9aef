"""The kinds of data that an experiment of several can be run on, each with defaults of its own."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeVar

from experiments.configs.settings import RunSettings, require

Domain = Literal["toy2d", "digits"]

OF_SHIFTED_DATA: Mapping[Domain, tuple[str, ...]] = MappingProxyType(
    {"toy2d": ("source", "target"), "digits": ("shift",)}
)
"""Settings that one domain alone has, where data are shifted from one law, or set of classes, to another."""

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


def check_own_settings(config: RunSettings, domain: Domain, own: Mapping[Domain, Sequence[str]]) -> None:
    """Refuses settings that differ from their defaults where another domain alone has them.

    Args:
        config: the settings.
        domain: their domain.
        own: names of settings that one domain alone has.

    Raises:
        ValueError: naming the flag.
    """
    for other, names in own.items():
        for name in names if other != domain else ():
            value = getattr(config, name)
            require(value == getattr(type(config), name), name, value, f"only with --domain {other}")
