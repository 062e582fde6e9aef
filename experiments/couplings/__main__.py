"""What a coupling does to a flow, one question to a program.

python -m experiments.couplings scratch       eight gaussians to moons, trained from the first step on: length, quality

Every run leaves a file when it ends; interrupted, the same command does what is missing.
"""

import sys

import tyro

from experiments.couplings.comparison import Comparison
from experiments.couplings.scratch import Scratch

COMPARISONS: dict[str, type[Comparison]] = {"scratch": Scratch}


def main() -> int:
    """Does the comparison named on the command line; returns the exit status."""
    comparison = tyro.extras.subcommand_cli_from_dict(
        COMPARISONS, prog="python -m experiments.couplings", description=__doc__
    )
    try:
        comparison.check()
        print(f"page: {comparison.write()}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command does what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
