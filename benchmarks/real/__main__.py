"""What `Classifier` finds on real images beside recipes of scikit-learn: `python -m benchmarks.real
--sources DIR ... --output DIR`.

Each fit learns from so many images of each class, drawn by a seed, and is tested on images that it
never saw (`images`). The recipes have the backbone's features of the same images. A line of
fits.jsonl has one fit, so that the same command resumes; `--table` prints what the lines say.
"""

import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC

from common.errors import UsageError
from common.start import Parser
from fit.estimator import Classifier
from inference.classifier import PromptedClassifier
from runs.session import run_command

from . import images

RECIPES: dict[str, Callable[[], Any]] = {
    "centroid": lambda: make_pipeline(Normalizer(), NearestCentroid()),
    "logistic": lambda: make_pipeline(Normalizer(), LogisticRegression(max_iter=1000)),
    "scaled logistic": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)
    ),
    "scaled SVC": lambda: make_pipeline(StandardScaler(), SVC(gamma="auto")),
    "forest": lambda: RandomForestClassifier(class_weight="balanced", random_state=0),
}
Record = dict[str, Any]


class Images(NamedTuple):
    """Images with their labels (images,) and features (images, width)."""

    paths: NDArray[np.str_]
    labels: NDArray[np.str_]
    features: NDArray[np.float32]

    def drawn(self, shots: int, seed: int) -> "Images":
        """So many images of each class."""
        rng = np.random.default_rng([seed, shots])
        places = [
            rng.permutation(np.flatnonzero(self.labels == label))[:shots]
            for label in np.unique(self.labels)
        ]
        return Images(*(column[np.concatenate(places)] for column in self))


@cache
def images_of(folder: Path, backbone: str) -> Images:
    """The images in class folders."""
    paths = sorted(folder.glob("*/*.png"))
    labels = np.array([path.parent.name for path in paths])
    encoder = PromptedClassifier.zero_shot(backbone, [*np.unique(labels)])
    return Images(np.array(list(map(str, paths))), labels, encoder.features(paths).numpy())


def measured(train: Images, test: Images, backbone: str, seed: int) -> Record:
    """The accuracy of a fit in percent, what it promised, and the accuracies of the recipes."""
    began = time.process_time()
    model = Classifier(backbone, minutes=0.0, random_state=seed).fit([*train.paths], train.labels)
    record: Record = {"seconds": time.process_time() - began}
    record["fit"] = 100 * float(np.mean(model.predict([*test.paths]) == test.labels))
    if model.estimate_:
        estimate = model.estimate_
        record |= {"estimate": estimate.accuracy, "low": estimate.low, "high": estimate.high}
        with suppress(UsageError):  # few images promise no sets
            sets = zip(model.predict_sets([*test.paths], 0.9), test.labels, strict=True)
            record["sets"] = 100 * float(np.mean([label in members for members, label in sets]))
    record["recipes"] = {name: recipe(make(), train, test) for name, make in RECIPES.items()}
    return record


def recipe(model: Any, train: Images, test: Images) -> float:
    """The accuracy in percent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images, and of steps
        model.fit(train.features, train.labels)
    return 100 * float(model.score(test.features, test.labels))


def table(records: DataFrame) -> Iterator[str]:
    """The mean accuracies, the distance to the best recipe in hindsight, and kept promises."""
    records = records.join(DataFrame([*records["recipes"]]))
    means = records.groupby(["set", "shots"])[["fit", *RECIPES]].mean()
    means["behind best"] = means["fit"] - means[[*RECIPES]].max(axis=1)
    yield means.round(1).to_string()
    if "estimate" in records:
        told = records.dropna(subset="estimate")
        inside = 100 * told["fit"].between(told["low"], told["high"]).mean()
        yield f"{inside:.1f}% of {len(told)} intervals of 95% contain the accuracy"
    if "sets" in records:
        yield f"sets for 90% have the class of {records['sets'].mean():.1f}% of the images"


def run(args: Namespace, file: Path, done: list[Record]) -> None:
    """Add a line for each fit that is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, shots, seed in product(args.sets, args.shots, args.seeds):
        cell = {"set": name, "shots": shots, "seed": seed}
        if any(cell.items() <= record.items() for record in done):
            continue
        folder = images.build(name, args.sources, args.output / "sets")
        train, test = (images_of(folder / part, args.backbone) for part in ("train", "test"))
        record = cell | measured(train.drawn(shots, seed), test, args.backbone, seed)
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(cell, flush=True)


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of the data sets and the records")
    add("--sources", type=Path, nargs="+", default=[], help="folders with the opened packages")
    add("--sets", nargs="+", default=[*images.SETS], help="data sets (default: all)")
    add("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16, 40], help="images of each class")
    add("--seeds", nargs="+", type=int, default=[1], help="of the draws")
    add("--backbone", default="small", help="of the fits and the features (default: small)")
    add("--table", action="store_true", help="print what the records say")
    args = parser.parse_args()
    file = args.output / "fits.jsonl"
    done = [json.loads(line) for line in file.open()] if file.is_file() else []
    if not args.table:
        run(args, file, done)
    elif not done:
        raise UsageError(f"{file} has no records", "run the same command without --table")
    else:
        print("\n".join(table(DataFrame(done))))


if __name__ == "__main__":
    run_command(main, "from the fits that are done")
