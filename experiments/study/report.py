"""Table, figures and page of a study, from the files of its folder alone, finished or not.

python -m experiments.study.report runs/study/digits --out experiments/results
"""

import argparse
import sys
from pathlib import Path

from experiments import plots
from experiments.files import write_atomically
from experiments.study.figures import study_figures
from experiments.study.page import study_page
from experiments.study.runs import as_csv, differences_as_csv, read_study


def write_study(study: Path, out: Path | None = None) -> Path:
    """Writes digits.csv, digits_differences.csv, the figures and digits.md; the path of the page.

    Args:
        study: folder of the study.
        out: where they go; default the folder of the study.

    Raises:
        FileNotFoundError: if there is no run in the study that has ended.
    """
    groups, found = read_study(study)
    if not found:
        raise FileNotFoundError(
            f"{study} holds no finished run of a study: python -m experiments.study digits"
        )
    out = study if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "digits.csv", as_csv(found))
    write_atomically(out / "digits_differences.csv", differences_as_csv(found))
    for name, figure in study_figures(found).items():
        plots.save(figure, out / f"{name}.png")
    page = out / "digits.md"
    write_atomically(page, study_page(groups, found))
    return page


def main() -> int:
    """Makes the page of the study named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.study.report", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--out", type=Path, help="folder of table, figures and page; default the study's")
    arguments = parser.parse_args()
    try:
        print(f"page: {write_study(arguments.study, arguments.out)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
