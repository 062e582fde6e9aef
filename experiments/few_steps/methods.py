"""The methods that are compared at few evaluations, and what each is made of."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

FewStepName = Literal[
    "plain",
    "gradual-linear",
    "gradual-coupled",
    "gradual-half",
    "reflow",
    "reflow-again",
    "mean-flow",
    "gradual-mean-flow",
    "gradual-mean-flow-coupled",
    "gradual-mean-flow-adaptive",
]


NO_PATH_KL = (
    "it is for independent pairs, and the methods of a few_steps run pair noise and data in different ways"
)


class FewStepMethod(NamedTuple):
    """What distinguishes one of these methods from another."""

    two_times: bool = False
    """Whether it learns an average velocity, by a network with a second time."""
    gradual: bool = False
    """Whether its target cools, as in gradual-linear."""
    coupled: bool = False
    """Whether noise and data are paired by the coupling of the run."""
    adaptive_power: float = 0.0
    """Of the weight of an average velocity's error, see `gft_jax.objectives.mean_flow`."""
    after: FewStepName | None = None
    """Of which method it continues the parameters and learns from samples."""
    share: float = 1.0
    """Its own part of the cost that all have."""


FEW_STEP_METHODS: Mapping[str, FewStepMethod] = MappingProxyType(
    {
        "plain": FewStepMethod(),
        "gradual-linear": FewStepMethod(gradual=True),
        "gradual-coupled": FewStepMethod(gradual=True, coupled=True),
        "gradual-half": FewStepMethod(gradual=True, share=0.5),
        "reflow": FewStepMethod(after="gradual-half", share=0.5),
        "reflow-again": FewStepMethod(after="reflow", share=0.5),
        "mean-flow": FewStepMethod(two_times=True),
        "gradual-mean-flow": FewStepMethod(two_times=True, gradual=True),
        "gradual-mean-flow-coupled": FewStepMethod(two_times=True, gradual=True, coupled=True),
        "gradual-mean-flow-adaptive": FewStepMethod(two_times=True, gradual=True, adaptive_power=1.0),
    }
)


def num_rounds(method: str) -> int:
    """How many rounds of reflow a method has behind it; its own counts."""
    after = FEW_STEP_METHODS[method].after
    return 0 if after is None else 1 + num_rounds(after)


def with_stages(methods: Sequence[FewStepName]) -> tuple[FewStepName, ...]:
    """The methods in their order, each after those that it continues."""
    stages: dict[FewStepName, None] = {}
    for name in methods:
        after = FEW_STEP_METHODS[name].after
        stages |= dict.fromkeys((*(() if after is None else with_stages((after,))), name))
    return tuple(stages)
