"""What a coupling does to a flow, one question to a program.

python -m experiments.couplings scratch       eight gaussians to moons, trained from the first step on: length, quality
python -m experiments.couplings finetuned     a base of the plane and one of digits, fine-tuned gradually
python -m experiments.couplings conditional   a moon, a mode, a digit at a time: quality condition by condition

Every run leaves a file when it ends; interrupted, the same command does what is missing.
"""

import sys

import tyro

from experiments.couplings.comparison import Comparison
from experiments.couplings.conditional import Conditional
from experiments.couplings.finetuned import Finetuned
from experiments.couplings.scratch import Scratch
from experiments.loop import Stopped

COMPARISONS: dict[str, type[Comparison]] = {
    "scratch": Scratch,
    "finetuned": Finetuned,
    "conditional": Conditional,
}


def main() -> int:
    """Does the comparison named on the command line; returns the exit status."""
    comparison = tyro.extras.subcommand_cli_from_dict(
        COMPARISONS, prog="python -m experiments.couplings", description=__doc__
    )
    try:
        comparison.check()
        print(f"page: {comparison.write()}")
    except (ValueError, OSError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command does what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
