"""What the page of a reward run says of its methods, and of how it was made."""

from collections.abc import Iterable

from experiments.reward.names import Method, parse_method, split_run

NOTES: tuple[str, ...] = (
    "A run is a method at a strength, METHOD@STRENGTH: λ, the price of control in units of reward (the smaller, the "
    "stronger), or for orw τ, the sharpness of the weights (the larger, the stronger).",
    "All runs of a seed start from one base, see the same noise, and take as many steps of the same optimiser. Equal "
    "λ does not mean equal strength: a method that trains the last K steps alone needs a smaller one. Compare the "
    "methods along their lines in the figure, at equal reward or at equal distance.",
    "The deterministic control problem trades reward for cost along each path; its optimum is narrower than the tilted "
    "law p exp(r / λ), at which memoryless adjoint matching aims. So diversity stands beside reward.",
    "All numbers are of the raw parameters, of samples by Euler's method with as many steps as in training, also for "
    "memoryless adjoint matching, which trains on stochastic paths. Every evaluation starts from the same noise.",
    "Energy distances are estimated without bias, and may therefore fall a little below zero.",
)


def method_of(run: str) -> Method:
    """The method of a run."""
    return parse_method(split_run(run)[0])


def descriptions(runs: Iterable[str]) -> dict[str, str]:
    """A sentence for each method of the runs."""
    return {method.name: _description(method) for method in dict.fromkeys(map(method_of, runs))}


def _description(method: Method) -> str:
    if method.family == "am":
        steps = "all steps" if method.truncation is None else f"the last {method.truncation} steps"
        cost = (
            "the quadratic cost" if method.power == 2 else f"the cost |u|^{method.power:g} / {method.power:g}"
        )
        return f"deterministic adjoint matching on {steps}, under {cost}."
    return {
        "memoryless": "stochastic adjoint matching with memoryless noise (arXiv:2409.08861).",
        "draft": f"gradient ascent through the last {method.truncation} steps of sampling (arXiv:2309.17400), with the "
        "quadratic cost on these steps.",
        "orw": "flow matching on the model's own samples, weighted by exp(τ r), with a penalty on the distance to the "
        "base (arXiv:2502.06061); it uses no gradient of the reward.",
        "value-guidance": "regression on the base's velocity plus the reward's gradient at a guess of the sample.",
    }[method.family]
