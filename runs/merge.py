"""The command `python tools/merge.py`: models of one method become one model."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip import CLIP
from clip.digest import digest
from common.errors import UsageError
from common.files import new_folder, write_text
from common.names import printable
from common.start import Parser, any_seed, path
from common.version import made
from inference.arguments import check_exists
from inference.artefact import EXPORT_CONFIG_FILE
from inference.classifier import PromptedClassifier
from inference.export import about, card
from inference.models import kind_of, load
from inference.options import LoadOptions
from inference.seen import ROLES, SeenImages
from trainers import predicting

from . import merging
from .calibrate import (
    NOTHING,
    add_common_options,
    dataset_of,
    new_images,
    outputs_of,
    seen_images,
)
from .how import OF_SUMS, How
from .merging import State

Learned = tuple[State, dict[str, Any]]  # with settings that differ from those of the first model
SHARES = [number / 10 for number in range(11)]  # at which WiSE-FT is tried
# Settings of a training, which say nothing of the learned tensors
OF_TRAINING = {"PREC", "N_ITERS", "STEPS", "DROPOUT_RATE", "LAMBDA"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Make one model of several that learned with one method on one backbone, for "
        "the same classes.",
        epilog="mean: what they have learned on average; of low-rank maps the mean of the "
        "products. greedy: the mean of those that raise the accuracy on validation images, tried "
        "in the order of their own (model soups). wise-ft:0.5: half of the way from CLIP to one "
        "model; without a number, the share that is best on validation images. task:0.7: CLIP and "
        "0.7 times the sum of all changes. ties and dare: rules for changes that disagree; "
        "ties:0.2 keeps a fifth of each, dare:0.9 leaves out nine tenths. All but mean and greedy "
        "are for methods that change CLIP's weights. Validation images are those of the first "
        "run, or --images; test images and training images are refused.",
    )
    add = parser.add_argument
    add("models", type=path, nargs="+", metavar="MODEL")
    add("--to", type=path, required=True, metavar="FOLDER", help="a new folder, or an empty one")
    words = "mean, greedy, wise-ft[:SHARE], task:FACTOR, ties[:SHARE] or dare[:SHARE]"
    add("--how", type=how, default=How("mean"), metavar="HOW", help=words + " (default: mean)")
    words = "labelled validation images instead of those of the first run: CLASS/*, or a bank"
    add("--images", type=path, metavar="FOLDER", help=words)
    add("--seed", type=any_seed, default=1, help="of what dare leaves out (default: 1)")
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def how(text: str) -> How:
    try:
        return How.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for model in args.models:
        check_exists(model)
    if kind_of(args.models[0]) == "peft":
        fault = f"{args.models[0]} is an adapter of PEFT, which names no classes"
        raise UsageError(fault, "give a run first, or make it a model by tools/export.py")
    if args.how.of_one != (len(args.models) == 1):
        number = "one model" if args.how.of_one else "two models or more"
        fault = f"--how {args.how.name} is for {number}"
        raise UsageError(fault, f"give {number}")
    if args.images and not args.how.chooses:
        fault = f"--images has no use here: --how {args.how} chooses nothing"
        raise UsageError(fault, "leave it out, or use --how greedy or wise-ft")
    members = Members(args.models, LoadOptions(backbone=args.backbone, device=args.device))
    with new_folder(args.to, EXPORT_CONFIG_FILE) as folder:
        merged = merge(members, args)
        merged.classifier.check_logits()
        description = merged.classifier.save(folder)
        if merged.seen is not None:
            merged.seen.write(folder)
        names = merged.classifier.class_names
        text = card(description, about(merged.classifier), names, merged.classifier.transfers)
        write_text(folder / "README.md", text)
    print(f"Written: {args.to}")


@dataclass(frozen=True)
class Merged:
    """A merged model, and what its members and the choice have seen, if that is known."""

    classifier: PromptedClassifier
    seen: SeenImages | None


class Members:
    """Models of one method, one backbone and the same classes, one in memory at a time.

    Args:
        paths: of the models.

    Raises:
        UsageError: they are not of one kind, or one is given twice.
    """

    def __init__(self, paths: Sequence[Path], options: LoadOptions):
        self.paths = paths
        self.options = replace(options, calibration=False)
        first = load(paths[0], self.options)
        self.clip: CLIP | None = first.clip
        self.first = first
        self.settings = [first.description.settings]
        self.selected_on_test = "selected_on_test" in first.description.training
        learned = {digest(state_of(first)): paths[0]}
        for other in paths[1:]:
            classifier = self.load(other)
            check_same(first, classifier, paths[0], other)
            self.settings.append(classifier.description.settings)
            self.selected_on_test |= "selected_on_test" in classifier.description.training
            content = digest(state_of(classifier))
            if content in learned:
                fault = f"{learned[content]} and {other} are the same model"
                raise UsageError(fault, "give each model once", other)
            learned[content] = other

    def load(self, path: Path) -> PromptedClassifier:
        options = self.options
        if kind_of(path) == "peft":
            backbone = self.first.cfg.MODEL.BACKBONE.NAME
            options = replace(options, class_names=self.first.class_names, backbone=backbone)
        return load(path, options, self.clip)

    def state(self, place: int) -> State:
        """The learned tensors of a model, on the CPU."""
        return state_of(self.load(self.paths[place]))

    def states(self) -> Iterator[State]:
        return map(self.state, range(len(self.paths)))

    def mean(self, places: Sequence[int]) -> Learned:
        """The mean of the models at these places."""
        return self.sum(dict.fromkeys(places, 1 / len(places)))

    def sum(self, weights: dict[int, float], start: State | None = None) -> Learned:
        """The weighted sum of the models at these places; the rest of the weight, to 1, is of
        `start`.
        """
        if merging.is_low_rank(self.first.model_for()):
            found = [(weight, self.state(n), self.settings[n]) for n, weight in weights.items()]
            return merging.low_rank_sum(found)
        states = ((weight, self.state(place)) for place, weight in weights.items())
        return merging.weighted(states, start), {}

    def classifier(
        self, state: State, settings: dict[str, Any], facts: dict[str, Any] | None = None
    ) -> PromptedClassifier:
        """The model that has learned this, with other settings than the first where they differ."""
        values = {**self.first.description.settings, **settings}
        metadata = (self.first.checkpoint or {}).get("metadata") or {}
        checkpoint = {"state_dict": state, "epoch": 0, "metadata": {**metadata, "settings": values}}
        description = replace(self.first.description, settings=values, training=facts or {})
        options = replace(self.options, backbone=self.first.cfg.MODEL.BACKBONE.NAME)
        return PromptedClassifier(description, checkpoint, "the merge", options, self.clip)


def state_of(classifier: PromptedClassifier) -> State:
    """The learned tensors; UsageError for none, or for factors without their settings."""
    if classifier.checkpoint is None:
        fault = f"{classifier.source} has learned nothing"
        raise UsageError(fault, "merge models that have learned", classifier.source)
    state = {key: tensor.cpu() for key, tensor in classifier.checkpoint["state_dict"].items()}
    check_factors(classifier, state)
    return state


def check_factors(classifier: PromptedClassifier, state: Iterable[str]) -> None:
    """Raise UsageError for low-rank factors whose settings are not those of CLIPLoRA."""
    has_factors = any(key.endswith(merging.LOW_RANK) for key in state)
    if has_factors and not merging.is_low_rank(classifier.model_for()):
        fault = f"{classifier.method} has low-rank maps, whose mean is not that of their factors"
        raise UsageError(fault, "merge models of CLIPLoRA", classifier.source)


def start_of(classifier: PromptedClassifier, how: How) -> State | None:
    """The tensors that a method starts from; None for low-rank maps, which start from no change.

    Raises:
        UsageError: changes from it have no meaning, or not under this rule.
    """
    if not merging.is_low_rank(classifier.model_for()):
        return merging.untrained(classifier)
    if how.name in ("ties", "dare"):
        fault = f"--how {how.name} is for the entries of weights, and the models are low-rank maps"
        raise UsageError(fault, "use --how mean, greedy or task")
    return None


def check_method(name: str, how: How) -> None:
    """Raise UsageError if models of a method cannot be merged so; it is tried on the small CLIP."""
    method = predicting()[name]
    if not method.learns:
        raise UsageError(f"{name} learns nothing", "merge models that have learned")
    zero_shot = PromptedClassifier.zero_shot("small", ["one", "other"])
    settings = asdict(method.Settings())
    description = replace(zero_shot.description, method=name, settings=settings)
    options = LoadOptions(backbone="small", device="cpu")
    classifier = PromptedClassifier(description, None, name, options, zero_shot.clip)
    check_factors(classifier, classifier.start().saved_module().state_dict())
    if how.name not in ("mean", "greedy"):
        start_of(classifier, how)


def check_same(
    first: PromptedClassifier, other: PromptedClassifier, at: Path, other_at: Path
) -> None:
    """Raise UsageError if two models cannot become one."""
    for fault, remedy in differences(first, other):
        raise UsageError(f"{at} and {other_at} {fault}", f"merge models of {remedy}", other_at)


def differences(first: PromptedClassifier, other: PromptedClassifier) -> Iterator[tuple[str, str]]:
    """Why two models cannot become one, and what can."""
    one = first.description
    two = other.description
    if one.method != two.method:
        yield f"are of {one.method} and {two.method}", "one method"
        return
    weights = {one.backbone_sha256, two.backbone_sha256} - {""}
    if len(weights) > 1:
        yield "stand on other weights", "one backbone"
    if first.class_names != other.class_names:
        same = sorted(first.class_names) == sorted(other.class_names)
        yield f"have {'another order of' if same else 'other'} classes", "the same classes in order"
    free = OF_TRAINING | (OF_SUMS if merging.is_low_rank(first.model_for()) else set())
    for key in sorted(set(one.settings) - free):
        if one.settings[key] != two.settings.get(key):
            values = f"{key} {one.settings[key]} and {two.settings.get(key)}"
            yield f"have {values if len(values) < 100 else f'other {key}'}", "the same settings"
    texts = {(each.template, each.dataset_template, str(each.sentences)) for each in (one, two)}
    if len(texts) > 1 and predicting()[one.method].reads_template:
        yield "have other sentences", "the same texts"


def merge(members: Members, args: argparse.Namespace) -> Merged:
    """The merged model that is asked for."""
    how: How = args.how
    seen = seen_by(members, args.accept_unknown_images or not how.chooses)
    facts: dict[str, Any] = {
        "merge": str(how),
        "models": [printable(each.name) for each in members.paths],
        **made(),
    }
    if members.selected_on_test:
        facts["selected_on_test"] = True
    if how.chooses:
        judge = Judge(members, args, seen)
        seen = judge.seen
        facts |= judge.facts
        state, settings, found = (greedy if how.name == "greedy" else best_share)(members, judge)
        facts |= found
    else:
        state, settings = combined(members, how, args.seed)
    seen = None if seen is None else without_repeats(seen)
    return Merged(members.classifier(state, settings, facts), seen)


def combined(members: Members, how: How, seed: int) -> Learned:
    """A model that needs no validation images."""
    places = range(len(members.paths))
    if how.name == "mean":
        return members.mean(places)
    start = start_of(members.first, how)
    if start is None or how.name in ("wise-ft", "task"):
        return members.sum(dict.fromkeys(places, float(how.value or 0)), start)
    if how.name == "ties":
        share = merging.DENSITY if how.value is None else how.value
        return merging.ties(members.states, start, share), {}
    share = merging.DROPPED if how.value is None else how.value
    generator = torch.Generator().manual_seed(seed)
    parts = (merging.dropped(state, start, share, generator) for state in members.states())
    return merging.weighted((1 / len(places), part) for part in parts), {}


def greedy(members: Members, judge: "Judge") -> tuple[State, dict[str, Any], dict[str, Any]]:
    """A greedy soup (Wortsman et al., 2022): the best model, and each next one that does not lower
    the accuracy of the mean.
    """
    alone = [judge.accuracy(*members.mean([place])) for place in range(len(members.paths))]
    order = sorted(range(len(alone)), key=lambda place: -alone[place])
    chosen = order[:1]
    best = alone[order[0]]
    for place in order[1:]:
        accuracy = judge.accuracy(*members.mean([*chosen, place]))
        if accuracy >= best:
            chosen.append(place)
            best = accuracy
    for place in order:
        stays = "in the mean" if place in chosen else "left out"
        print(printable(f"{alone[place]:5.1f}%  {members.paths[place]}: {stays}"))
    print(f"{best:5.1f}%  the mean, on {len(judge.items):,} validation images")
    names = [printable(members.paths[place].name) for place in chosen]
    return *members.mean(chosen), {"chosen": names, "validation_accuracy": round(best, 2)}


def best_share(members: Members, judge: "Judge") -> tuple[State, dict[str, Any], dict[str, Any]]:
    """WiSE-FT (Wortsman et al., CVPR 2022) with the share of the learned change that is best on
    validation images; the smallest of several.
    """
    start = start_of(members.first, How("wise-ft"))
    accuracies = {share: judge.accuracy(*members.sum({0: share}, start)) for share in SHARES}
    for share, accuracy in accuracies.items():
        print(f"{accuracy:5.1f}%  wise-ft:{share:g}")
    best = max(SHARES, key=lambda share: accuracies[share])
    print(f"wise-ft:{best:g} is the best on {len(judge.items):,} validation images")
    learned, settings = members.sum({0: best}, start)
    accuracy = round(accuracies[best], 2)
    return learned, settings, {"merge": f"wise-ft:{best:g}", "validation_accuracy": accuracy}


class Judge:
    """Accuracies on validation images, which no model has learned from.

    Args:
        seen: what the models have seen; None if that is not known. The attribute has the validation
            images, too.

    Raises:
        UsageError: there are none, a model has learned from one, or they are test images.
    """

    def __init__(self, members: Members, args: argparse.Namespace, seen: SeenImages | None):
        where = next((path for path in members.paths if kind_of(path) == "run"), members.paths[0])
        self.members = members
        dataset = dataset_of(where)
        images = new_images(where, dataset, members.first, seen, args, "choice")
        self.items = images.items
        self.seen: SeenImages | None = None
        if images.seen is not None:
            chosen = np.full_like(images.asked.role, ROLES.index("chosen"))
            self.seen = images.seen + replace(images.asked, role=chosen)
        self.facts: dict[str, Any] = {"validation_images": len(self.items)}
        if images.tested:
            self.facts["selected_on_test"] = True

    def accuracy(self, state: State, settings: dict[str, Any]) -> float:
        """In percent, of a model that has learned this."""
        outputs = outputs_of(self.members.classifier(state, settings), self.items)
        return 100 * float((outputs.logits.argmax(axis=1) == outputs.labels).mean())


def seen_by(members: Members, accepts_unknown: bool) -> SeenImages | None:
    """The images that any of the models has seen; None if one does not say it and that is
    accepted.
    """
    union = NOTHING
    for place in members.paths:
        dataset = dataset_of(place)
        seen = seen_images(place, dataset, members.first.method, accepts_unknown)
        if seen is None:
            return None
        union = union + seen
    return union


def without_repeats(seen: SeenImages) -> SeenImages:
    """Each image once for each role."""
    rows = np.column_stack([seen.digest, seen.role])
    _, first = np.unique(rows, axis=0, return_index=True)
    inside = np.zeros(len(seen), dtype=bool)
    inside[first] = True
    return seen.part(inside)
