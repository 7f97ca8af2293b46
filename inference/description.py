"""The settings that a prediction depends on: those of a method, and those of zero-shot CLIP on a
backbone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

import datasets
import trainers
from clip import CLIP, OF_CLIP, preprocessing
from common.errors import UsageError
from common.names import check_known_names, check_template, title
from configs.methods import check_method
from datasets import sentences
from trainers.base import TEMPLATE
from trainers.base.data_use import inherited, selections_using_test_images
from trainers.base.method import Method
from trainers.base.settings import without_removed

from .artefact import INPUT, NO_NAMES, Description
from .options import LoadOptions

TEST_TRANSFORMS = ("normalize",)  # of INPUT.TRANSFORMS; the others are for training


def configuration(method: str, where: Path | None = None) -> CfgNode:
    """The configuration of a method, which the file `where` names, to be merged with values of any
    key of training.
    """
    check_method(method, trainers.predicting(), where)
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg, method)
    cfg.set_new_allowed(True)
    for section in (cfg.INPUT, cfg.TRAINER[trainers.predicting()[method].section()]):
        section.set_new_allowed(False)
    cfg.TRAINER.NAME = method
    return cfg


def check_description(description: Description, source: str) -> None:
    """Raise UsageError for a model without class names, or with wrong names or sentences."""
    if not description.class_names:
        raise UsageError(f"{source} holds no class names", NO_NAMES, source)
    check_known_names(description.class_names, source)
    for template in filter(None, (description.template, description.dataset_template)):
        check_template(template, source)
    if description.sentences:
        datasets.sentences.check_sentences(description.sentences, source)


def predicting_configuration(description: Description, options: LoadOptions) -> CfgNode:
    """The settings that predictions of a model depend on; values of training are defaults.

    Raises:
        UsageError: the prompts do not fit the settings, or the weights are others.
    """
    cfg = configuration(description.method)
    section = trainers.predicting()[description.method].section()
    cfg.merge_from_other_cfg(
        {
            "TRAINER": {section: without_removed(description.settings)},
            "INPUT": description.input,
        }
    )
    cfg.DATASET.NAME = description.dataset_name
    cfg.DATASET.TITLE = description.dataset
    cfg.DATASET.TEMPLATE = description.template
    cfg.MODEL.BACKBONE.NAME = description.backbone_name(options.backbone)
    seed = description.training.get("seed")  # of the views of a test-time method
    cfg.SEED = seed if type(seed) is int and 0 <= seed < 2**32 else 0
    shots = description.training.get("shots")  # in TRAINER.<NAME>.OVER
    cfg.DATASET.NUM_SHOTS = shots if type(shots) is int else -1
    if options.max_pixels is not None:
        cfg.merge_from_list(["INPUT.MAX_PIXELS", options.max_pixels])
    cfg.freeze()  # which checks Dassl's keys
    return cfg


def zero_shot_description(
    clip: CLIP,
    backbone: str,
    class_names: Sequence[str],
    template: str,
    sentences: dict[str, list[str]],
) -> Description:
    """Zero-shot CLIP: `template` has {} for the class name; a class with `sentences` has these
    instead.

    Images are read as the preprocessing of the backbone says.
    """
    size = clip.visual.image_size
    image: dict[str, Any] = {"SIZE": list(size) if isinstance(size, tuple | list) else [size, size]}
    for key, attribute in {"PIXEL_MEAN": "image_mean", "PIXEL_STD": "image_std"}.items():
        if values := getattr(clip.visual, attribute, None):
            image[key] = list(values)
    image = OF_CLIP | preprocessing(backbone) | image | {"TRANSFORMS": ["normalize"]}
    image |= {key: list(value) for key, value in image.items() if isinstance(value, tuple)}
    texts: dict[str, Any] = {"template": template, "sentences": sentences}
    return Description(
        "ZeroshotCLIP", {"PREC": "fp32"}, image, backbone, class_names=list(class_names), **texts
    )


def describe(
    cfg: CfgNode, checkpoint: dict[str, Any] | None, training: dict[str, Any]
) -> Description:
    """The description of a configuration's prompts."""
    method = trainers.methods()[cfg.TRAINER.NAME]
    metadata = (checkpoint or {}).get("metadata") or {}
    sha256 = metadata.get("weights_sha256") or cfg.MODEL.BACKBONE.get("SHA256") or ""
    facts = dict(training)
    # Also of a start, or of settings: they hold for each epoch
    choices, _ = inherited(checkpoint or {})
    if selections_using_test_images(choices):
        facts["selected_on_test"] = True
    plugin = metadata.get("plugin_sha256") or cfg.MODEL.get("PLUGIN_SHA256", "")
    if plugin:
        facts["plugin_sha256"] = plugin
    # What says how test images are read
    image = {key: cfg.INPUT[key] for key in (*INPUT, "MAX_PIXELS") if key in cfg.INPUT}
    image["TRANSFORMS"] = [one for one in cfg.INPUT.TRANSFORMS if one in TEST_TRANSFORMS]
    description = Description(
        cfg.TRAINER.NAME,
        asdict(method.settings_of(cfg)),
        image,
        cfg.MODEL.BACKBONE.NAME,
    )
    name = cfg.DATASET.NAME
    if name in DATASET_REGISTRY.registered_names():
        template = getattr(DATASET_REGISTRY.get(name), "template", "")
        description = replace(description, dataset_template=template)
    return replace(
        description,
        backbone_sha256=str(sha256).lower(),
        class_names=metadata.get("class_names", []),
        dataset=title(cfg),
        template=cfg.DATASET.TEMPLATE,
        training=facts,
        dataset_name=name,
        sentences=sentences.read_sentences(sentences.sentences_file(cfg)[0]),
    )


def doubts(description: Description, method: type[Method], backbone: str) -> Iterator[str]:
    """Facts that the files of a model lack, or that are of another version."""
    if not description.backbone_sha256:
        fault = "does not say on which weights its prompts were learned"
        yield f"{fault}: check that they are those of {backbone}"
    if description.training.get("plugin_sha256", "") != method.plugin_sha256:
        yield f"was learned by another version of {description.method}: its file has changed"
    if method.reads_template and not (description.template or description.dataset_template):
        reads = f"{description.method} reads the class names in {TEMPLATE!r}"
        yield f"does not say its dataset: {reads}"
