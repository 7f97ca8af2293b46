"""The command `python tools/export.py`: a model as a folder to keep, to pass on, and to serve."""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.files import check_vacant, new_folder, write_text
from common.names import printable
from common.pages import render
from common.results import CALIBRATION, SEEN
from common.start import Parser, path, required_packages

from .arguments import MODELS, add_model_options, check_exists, load_options

if TYPE_CHECKING:
    from .classifier import PromptedClassifier
    from .export_formats import Form

KEY = "config.json"
MARKUP = r"[\\`*\[\]|~]|\b_|_\b"  # of Markdown; `render` escapes that of HTML


# In the model card
FORMS_OF_TEXT: dict[str, Any] = {
    "text": lambda value: re.sub(MARKUP, r"\\\g<0>", printable(value)),
    "word": lambda value: shlex.quote(printable(value)),
    "string": lambda value: json.dumps(printable(value)),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Write the learned prompts of a model, and what is needed to use them, to a "
        "folder of their own.",
        epilog=f"{MODELS} --onnx and --weights are for the class names of the model or, if given, "
        "of --classes. Each written file is run and compared with the model. A logit that differs "
        "by more than 0.001 is an error.",
    )
    add = parser.add_argument
    text = "the model to export (without it: zero-shot CLIP on --backbone)"
    add("model", type=path, nargs="?", metavar="MODEL", help=text)
    add("--to", type=path, required=True, metavar="FOLDER", help="a new folder, or an empty one")
    add("--onnx", action="store_true", help="also write model.onnx, from images to logits")
    add(
        "--weights",
        action="store_true",
        help="also write class_matrix.safetensors, for users of open_clip",
    )
    files = "adapter_config.json and adapter_model.safetensors"
    text = f"also write {files} for PEFT on the CLIP of transformers; for CLIPLoRA"
    library = "transformers"
    add("--peft", nargs="?", const=library, default="", choices=[library], help=text)
    text = "also upload the folder to this repository of the Hugging Face Hub; a new one is private"
    add("--push-to-hub", default="", metavar="USER/NAME", help=text)
    add_model_options(parser, device="cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = load_options(args)
    if args.model:
        check_exists(args.model)
        if args.to.resolve() == args.model.resolve():
            raise UsageError(f"--to {args.to} is the model itself", "give a new folder", args.to)
    with required_packages():
        from . import export_formats
        from .load import load

        if args.push_to_hub:
            from . import hub

            hub.check_login(args.push_to_hub)
    forms = [export_formats.FORMS[form] for form in export_formats.FORMS if getattr(args, form)]
    with new_folder(args.to, KEY) as folder:
        classifier = load(args.model, options)
        names = list(options.class_names) or classifier.class_names
        check_forms(classifier, names, forms)
        classifier.check_logits()
        description = classifier.save(folder)
        check_vacant(args.to, KEY, folder)  # before what takes minutes
        written = about(classifier) | copy_seen(args.model, folder, bool(args.push_to_hub))
        for form in forms:
            written |= export_formats.write(form, classifier, names, folder)
        write_text(folder / "README.md", card(description, written, names, classifier.transfers))
    files = [*written, "README.md"]
    print(f"Written: {', '.join(files)} to {args.to}")
    if args.push_to_hub:
        optional = [*export_formats.FILES, CALIBRATION, SEEN]
        print(f"Uploaded to {hub.upload(args.to, files, args.push_to_hub, optional)}")


def check_forms(
    classifier: "PromptedClassifier", names: Sequence[str], forms: Sequence["Form"]
) -> None:
    """Raise UsageError for a model without such forms, or names that the folder would not keep."""
    for form in forms:
        classifier.require_one_view(form.file)
    if names != classifier.class_names and not forms:
        fault = f"{classifier.source} has class names of its own, which the folder keeps"
        remedy = "add --onnx or --weights, or leave out the class names"
        raise UsageError(fault, remedy, classifier.source)


def about(classifier: "PromptedClassifier") -> dict[str, str]:
    """What `PromptedClassifier.save` has written, for the model card."""
    written = {
        "prompts.safetensors": "the learned tensors",
        "config.json": "everything that is needed to use them",
    }
    if classifier.calibration:
        images = f"{classifier.calibration.images:,} images"
        text = f"temperature, threshold for unknown images and sets, fitted on {images}"
        written[CALIBRATION] = text
    return written


def copy_seen(model: Path | None, folder: Path, is_public: bool) -> dict[str, str]:
    """Copy what the model has seen, if that is known; a public copy shows no trace of the images.

    Returns:
        the written files with a text, for the model card.
    """
    from .seen import SeenImages

    seen = SeenImages.read(model) if model else None
    if seen is None:
        return {}
    if is_public:
        seen = seen.without_signatures()
    seen.write(folder)
    images = f"{len(seen):,} images that the model has seen"
    return {SEEN: f"checksums of the {images}; calibrations compare them"}


def card(description, written: dict[str, str], names: Sequence[str], transfers: bool) -> str:
    """The model card: README.md of the folder. Texts of the description may be anybody's, so none
    of them is markup.

    `transfers` is that of the classifier.
    """
    import trainers
    from clip import is_known

    backbone = description.backbone
    arch, colon, name = backbone.rpartition(":")
    file = backbone if arch == "hf-hub" else f"{arch}{colon}FOLDER/{name}"  # of the reader
    facts: dict[str, Any] = {"of": description, "transfers": transfers, "written": written}
    facts["kind"] = trainers.predicting()[description.method]
    facts["file"] = "" if is_known(backbone) else file
    facts["names"] = names if names != description.class_names else ()
    return render(Path(__file__).with_name("model_card.md"), **FORMS_OF_TEXT, **facts)
