"""Say in a line each what runs reached: `python -m tools.base2new RUN ...`.

Each is an output folder of train.py. After two, the first tested on base classes and the second on new ones, stands
their harmonic mean.
"""

import argparse
import json
from pathlib import Path


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), in the unit of its arguments; 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


class ResultsError(ValueError):
    """A results.json that is none (one line)."""

    one_line = True


def read_results(folder: Path) -> dict | None:
    """results.json of a finished run; None where there is none or it was run without a test.

    Raises:
        ResultsError: it is cut short, or something else.
    """
    file = folder / "results.json"
    try:
        if not file.is_file():
            return None
        run = json.loads(file.read_text())
        return run if run["accuracy"] is not None else None
    except (ValueError, KeyError, TypeError):
        raise ResultsError(f"{file} is damaged: delete it and start its run again") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output folder of train.py")
    args = parser.parse_args()
    try:
        runs = [run for run in map(read_results, args.runs) if run]
    except ResultsError as error:
        parser.error(str(error))
    for run in runs:
        shots = f" {run['shots']} shots" if run["shots"] > 0 else ""
        seed = f" seed {run['seed']}" if run["seed"] >= 0 else ""
        print(
            f"{run['trainer']} on {run['dataset']}{shots}{seed}: {run['accuracy']:.2f}% "
            f"on {run['n_test']:,} test images of {run['classes']} classes"
        )
    if [run["classes"] for run in runs] == ["base", "new"]:
        print(f"Harmonic mean: {harmonic_mean(*(run['accuracy'] for run in runs)):.2f}%")


if __name__ == "__main__":
    main()
