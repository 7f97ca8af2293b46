"""How to load a model: the same for Python and for all commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model (`inference.load.load`).

    Attributes:
        backbone: name or file of the weights, which must have the SHA-256 that the model states;
            by default those that it was learned on. Without a model: zero-shot CLIP on it.
        device: `cpu` or `cuda`; by default CUDA if there is a GPU.
        epoch: of a run; by default the tested one.
        revision: of a repository on the Hugging Face Hub: a branch, a tag or a commit.
        class_names: for zero-shot CLIP and published checkpoints, which have none.
        config_file, method: of a published checkpoint; the method is by default the name of the
            folder of the YAML file.
        template, sentences: the sentence with {} for the class name, and the JSON file with
            sentences for classes, of zero-shot CLIP or a published checkpoint.
        max_pixels: larger images are refused; by default as in the run, or those over 89,478,485.
        calibration: False ignores what tools/calibrate.py has fitted; True also refuses an epoch
            of which it is not; by default such an epoch is not calibrated.
        plugin: Python files that register methods: they are run.
    """

    backbone: str = ""
    device: str = ""
    epoch: int | None = None
    revision: str | None = None
    class_names: Sequence[str] = ()
    config_file: str | PathLike = ""
    method: str = ""
    template: str = ""
    sentences: str | PathLike | None = None
    max_pixels: int | None = None
    calibration: bool | None = None
    plugin: Sequence[str | PathLike] = ()


DEFAULTS = LoadOptions()


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What to answer for each image, and by which class names (`tools/predict.py`).

    Attributes:
        class_names: instead of those of the models; None: their own.
        topk: how many of the most probable classes.
        unknown: whether to say if the model is too unsure.
        sets: the share of images whose class the set has; None: no set.
        batch_size: images at a time.
        transductive: the method that answers for all images together; empty: each alone.
    """

    class_names: Sequence[str] | None = None
    topk: int = 5
    unknown: bool = False
    sets: float | None = None
    batch_size: int = 100
    transductive: str = ""
