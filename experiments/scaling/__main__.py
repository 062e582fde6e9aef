"""Memory and time of a training step on 1 to 512 accelerators, on paper.

python -m experiments.scaling

checks the formulas by programs compiled on this machine (some minutes), and writes experiments/scaling.md.
"""

import sys
from pathlib import Path

import tyro

from experiments.scaling import page
from experiments.scaling.checks import all_checks


def write(output: Path = Path(__file__).parents[1] / "scaling.md") -> None:
    """Checks the formulas and writes the page.

    Args:
        output: the page.
    """
    if not output.parent.is_dir():
        raise ValueError(
            f"there is no folder {output.parent} for the page: make it, or give another --output"
        )
    page.write(output, all_checks())
    print(f"page: {output}")


def main() -> int:
    """Writes the page; returns the exit status."""
    try:
        tyro.cli(write, prog="python -m experiments.scaling", description=__doc__)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
