"""What others run on features: five lines of scikit-learn each."""

import warnings
from collections.abc import Callable
from typing import Any

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC

from benchmarks.fits import Images, percent

RECIPES: dict[str, Callable[[], Any]] = {
    "centroid": lambda: make_pipeline(Normalizer(), NearestCentroid()),
    "logistic": lambda: make_pipeline(Normalizer(), LogisticRegression(max_iter=1000)),
    "scaled logistic": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)
    ),
    "scaled SVC": lambda: make_pipeline(StandardScaler(), SVC(gamma="auto")),
    "forest": lambda: RandomForestClassifier(class_weight="balanced", random_state=0),
}


def accuracies(train: Images, test: Images) -> dict[str, float]:
    """The accuracy of each recipe, in percent, after learning."""
    found = {}
    for name, make in RECIPES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few images, and of steps
            answers = make().fit(train.x.numpy(), train.labels).predict(test.x.numpy())
        found[name] = percent(answers == test.labels)
    return found
