"""What the page of a report says of how samples are made, compared and shown."""

from collections.abc import Sequence


def sampling(
    num_evaluations: int | None, sampling_steps: int | None, tolerance: float | None, guidance: float | None
) -> str:
    """How samples are made, and what they cost.

    Args:
        num_evaluations: calls of the network for one of them; None where they are counted, or nothing is known.
        sampling_steps: Euler steps.
        tolerance: of steps that adapt; None for Euler's.
        guidance: scale of guidance; None or 1 for none.
    """
    calls, drift, one_step = "evaluations of the drift (NFE)", "", "a single one"
    if guidance not in (None, 1.0):
        calls, one_step = "calls of the network (NFE)", "two"
        drift = f" of the drift guided with scale {guidance:g}, two calls for each of its evaluations"
    if tolerance is not None:
        return (
            f"Samples are made by Dopri5{drift}. Its steps adapt to a tolerance of {tolerance:g}, so that the number "
            f"of {calls} is not the same for all: the column NFE has it, as it was counted, with rejected steps. "
            f"Samples called one-step are made with {one_step}."
        )
    if drift:
        drift = f", in {sampling_steps} Euler steps{drift}"
    count = "an unrecorded number of" if num_evaluations is None else str(num_evaluations)
    return f"Samples are made with {count} {calls} each{drift}; those called one-step with {one_step}."


def space(features: str | None, samples_are: str | None) -> Sequence[str]:
    """In which space samples are compared, where that is not the one of images."""
    if features is not None:
        return [
            f"W₂, energy distances and diversity are those of features of the samples, by {features}; path lengths and "
            "distances of drifts are of the samples themselves."
        ]
    if samples_are == "latents":
        return [
            "All distances are between latents as they are, and not between the images that they stand for."
        ]
    return []


def scale(samples_are: str | None) -> str:
    """How samples are shown."""
    if samples_are == "latents":
        return (
            "Of latents the first three channels, as colours (of fewer than three the first, in grey), divided by the "
            "99th percentile of the absolute values of real ones, from -1 to 1."
        )
    return "All on one scale, from -1 to 1."
