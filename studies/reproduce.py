"""`python tools/reproduce.py`: test a published set of checkpoints, and print its results next to
the published.
"""

import argparse
import glob
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from common.errors import UsageError, check_dataset_name, check_name
from common.files import check_folder, write_text
from common.start import Parser, any_seed, at_least, path
from configs.files import config_names, known_datasets
from configs.recipes import recipe

from .plan import PlannedTraining, RunSequence, Study
from .progress import collect_results
from .scripts import exact_name
from .study import BASE2NEW, ELEVEN, PROTOCOLS, Step, Variant

if TYPE_CHECKING:
    from .tables import Summary
    from .write import Table

DOMAINS = "domain_generalisation"
DATA = Path(__file__).with_name("published")
PUBLISHED = json.loads((DATA / "published_results.json").read_text())
AUTHORS = PUBLISHED["base2new"]
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
# By protocol
LAYOUTS: dict[str, list[str]] = yaml.safe_load((DATA / "layouts.yaml").read_text())
# Names of methods and datasets in their folders, where these are others than here.
NAMES = {"MMA": "MultiModalAdapter", "fgvc_aircraft": "fgvc"}
NAMES |= {
    f"DePT+{base}": f"ExtrasLinearProbe{base}" for base in ("CoOp", "CoCoOp", "KgCoOp", "MaPLe")
}
FILES = "*/model*.pth.tar*", "lora_weights.pt", "base_model.pt"
DESCRIPTION = (
    "Test a published set of checkpoints and print the results next to the published ones."
)
EPILOG = """
CHECKPOINTS is a folder in a layout that authors use: DATASET/base/seedN and seedN (MaPLe,
PromptSRC), DATASET/Kshot/seedN (PromptSRC), or the output folder of a project
(base2new/train_base/..., crossdataset/imagenet/...). docs/reproduce.md says where authors publish
them.
"""
Key = tuple[str, int, int]  # dataset, shots, seed
# From base to new classes
TESTS = tuple(Step(part, BASE2NEW.format(part=f"test_{part}")) for part in ("base", "new"))


def find_prompts(
    folder: Path, protocol: str, method: str, key: Key, alone: bool, cfg: str = ""
) -> Path | None:
    """The folder of a training run in a set of checkpoints; None if the set has none.

    Args:
        key: dataset, shots and seed of the training run.
        alone: whether the set may be of this dataset only, without its name.
        cfg: name of the YAML file, if the user has chosen one; of several folders that fit, its own
            is used.

    Raises UsageError if several folders fit.
    """
    for pattern in patterns(protocol, method, key, alone):
        runs = folders_with_prompts(folder, pattern)
        # In MMRL's repository, the prompts of cross_dataset are there, too
        if protocol == "base2new":
            runs = [path for path in runs if not path.parent.name.endswith("_cross_datasets")]
        if len(runs) > 1:
            # Those whose folders name the YAML file
            own = {cfg, f"{cfg}_{key[1]}shots"}
            runs = [path for path in runs if own & {*path.relative_to(folder).parts}] or runs
        if len(runs) > 1:
            fault = f"{runs[0]} and {runs[1]} are both of {key[0]}, seed {key[2]}"
            remedy = "name the YAML file of one by --cfg, or move one elsewhere"
            raise UsageError(fault, remedy, folder)
        if runs:
            return runs[0]
    return None


def patterns(protocol: str, method: str, key: Key, alone: bool) -> Iterator[str]:
    """Where a training run may be in a set of checkpoints, as `find_prompts` has the arguments."""
    dataset, shots, seed = key
    published = NAMES.get(method, method)
    spellings = [(method, dataset), (published, NAMES.get(dataset, dataset)), (published, dataset)]
    for layout, names in product(LAYOUTS[protocol], dict.fromkeys(spellings)):
        if "{dataset}" in layout or alone:
            yield layout.format(method=names[0], dataset=names[1], shots=shots, seed=seed)


def folders_with_prompts(folder: Path, pattern: str) -> list[Path]:
    """The folders that fit a pattern and have the files of a checkpoint."""
    fitting = map(Path, sorted(glob.glob(f"{glob.escape(str(folder))}/{pattern}")))
    return [path for path in fitting if any(any(path.glob(file)) for file in FILES)]


@dataclass(frozen=True)
class PublishedStudy(Study):
    """A study whose runs test a set of checkpoints."""

    # Folders of training runs by their data
    prompts: dict[Key, Path] = field(default_factory=dict, hash=False)
    epoch: int | None = None  # of the checkpoints; None for the best or newest
    # The datasets of cross_dataset to test, which may include the source
    tested_on: tuple[str, ...] = ()

    def sequences_of(self, protocol: str) -> Iterator[RunSequence]:
        """The tests of the prompts. From base to new classes, a test of the base classes has its
        own folder, too.
        """
        steps = TESTS if protocol == "base2new" else PROTOCOLS[protocol].steps[-1:]
        (variant,) = self.variants
        for (trained_on, shots, seed), prompts in self.prompts.items():
            training = PlannedTraining(protocol, variant, trained_on, seed, shots)
            options = ["--eval-only", "--model-dir", prompts]
            if self.epoch is not None:
                options += ["--load-epoch", self.epoch]
            for step, dataset in product(steps, self.tested_on or (trained_on,)):
                yield (self.run(step, dataset, training, *options),)


def study_of(args: argparse.Namespace) -> PublishedStudy:
    """The tests that a set of checkpoints allows. Raises UsageError if it has none of the datasets
    and seeds.
    """
    protocol, prompts = first_prompts(args)
    layout = layout_of(protocol)
    datasets, shots, seeds = map(dict.fromkeys, zip(*prompts, strict=True))
    data: dict[str, Any] = {"datasets": tuple(datasets)}
    if layout == "cross_dataset":
        tested = tested_datasets(args, protocol)
        targets = tuple(name for name in tested if name != args.source)
        data = {"source": args.source, "targets": targets, "tested_on": tested}
    data |= {"root": args.root, "output": args.output}
    cfg = args.cfg or recipe(args.method, layout, backbone=args.backbone).cfg
    return PublishedStudy(
        (Variant(args.method, args.method, cfg),),
        protocols=(layout,),
        seeds=tuple(sorted(seeds)),
        shots=tuple(sorted(shots)),
        backbone=args.backbone,
        prompts=prompts,
        epoch=args.epoch,
        **data,
    )


def tested_datasets(args: argparse.Namespace, protocol: str) -> tuple[str, ...]:
    """The datasets to test prompts on that were learned on another one."""
    others = [name for name in ELEVEN if name != args.source]
    if protocol == DOMAINS:
        others = list(VARIANTS)
    return tuple(dict.fromkeys(args.datasets or others))


def layout_of(protocol: str) -> str:
    """The protocol whose training runs have the prompts."""
    return "cross_dataset" if protocol == DOMAINS else protocol


def first_prompts(args: argparse.Namespace) -> tuple[str, dict[Key, Path]]:
    """The protocol that is asked for or else the first that fits, and its folders of prompts."""
    place = args.checkpoints
    check_folder(place, "there is no folder", "check --checkpoints")
    for protocol in [args.protocol] if args.protocol else LAYOUTS:
        prompts = all_prompts(args, layout_of(protocol))
        if prompts:
            return protocol, prompts
    remedy = "see docs/reproduce.md for the layouts; --datasets and --seeds choose some of them"
    if args.protocol:
        remedy = f"expected {', '.join(LAYOUTS[layout_of(args.protocol)])}"
    raise UsageError(f"no checkpoints of {args.method} in {place}", remedy, place)


def all_prompts(args: argparse.Namespace, layout: str) -> dict[Key, Path]:
    """The folders of training runs in a set of checkpoints, by their data."""
    place = args.checkpoints
    names = [args.source] if layout == "cross_dataset" else args.datasets or ELEVEN
    shots = (args.shots,) if args.shots else PROTOCOLS[layout].shots
    # The dataset whose name the layout may lack
    alone = names[0] if len(names) == 1 else place.resolve().name
    prompts = {}
    for key in product(names, shots, args.seeds):
        folder = find_prompts(place, layout, args.method, key, key[0] == alone, args.cfg)
        if folder:
            prompts[key] = folder
    return prompts


def compared_with_authors(summary: "Summary") -> "list[Table]":
    """Our averages next to the published ones, from base to new classes or on ImageNet's variants,
    if there are any.
    """
    from .tables import MARKED, marked
    from .write import Cell, Table, number

    study = summary.study
    if (summary.runs["backbone"] != "ViT-B/16").any() or study.shots != (16,):
        return []
    on_variants = set(study.targets) == set(VARIANTS)
    known = on_imagenet_variants(summary) if on_variants else on_halves(summary)
    if not known.rows or not set(known.columns) <= set(known.ours.index):
        return []
    selected = summary.cells["selected_on_test"].any()
    named = [(marked("these checkpoints", selected), known.ours)]
    named += [("published", row) for row in known.rows]
    rows = [
        [Cell(name), *(Cell(number(values[column])) for column in known.columns)]
        for name, values in named
    ]
    note = f"{known.note} {MARKED}." if selected else known.note
    return [Table(known.title, ["", *known.columns], rows, note)]


class Known(NamedTuple):
    """Published results of a method, and what they are compared with."""

    title: str
    columns: list[str]
    ours: Any  # a series of accuracies by column
    rows: list[dict]  # the same of each publication
    note: str


def on_imagenet_variants(summary: "Summary") -> Known:
    study = summary.study
    (variant,) = study.variants
    known = PUBLISHED[DOMAINS].get(variant.method)
    cfg = recipe(variant.method, "cross_dataset").cfg
    fits = known and (study.source, variant.cfg) == ("imagenet", cfg)
    ours = summary.cells.set_index("dataset")["mean"]
    title = f"{DOMAINS}: published results"
    note = "Accuracy in %, trained on ImageNet."
    return Known(title, [*VARIANTS, "average"], ours, [known] if fits else [], note)


def on_halves(summary: "Summary") -> Known:
    (variant,) = summary.study.variants
    datasets = summary.study.datasets
    rows = [row for row in AUTHORS if row["method"] == variant.method]
    rows = [row for row in rows if row["cfg"] in ("*", variant.cfg)]
    ours = summary.cells.query("dataset == 'average'").set_index("part")["mean"]
    note = "Averages in %, published over eleven datasets."
    if set(datasets) != set(ELEVEN):
        note += f" These are over {len(datasets)}, and do not compare."
    return Known("base2new, average: the authors' results", ["base", "new", "H"], ours, rows, note)


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("method", metavar="METHOD", help="name of the method, such as MaPLe")
    text = "folder of the checkpoints"
    add("--checkpoints", type=path, required=True, metavar="FOLDER", help=text)
    text = "protocol of the tests (default: the first that fits the folder)"
    add("--protocol", choices=[*LAYOUTS, DOMAINS], help=text)
    text = "datasets to test (default: those of the papers)"
    add("--datasets", nargs="+", metavar="NAME", help=text)
    text = "seeds to test (default: 1 to 6)"
    add("--seeds", type=any_seed, nargs="+", default=[1, 2, 3, 4, 5, 6], help=text)
    text = "images of each class (default: 16; few_shot: 1, 2, 4, 8, 16)"
    add("--shots", type=at_least(1), help=text)
    text = "for cross_dataset: the training dataset (default: imagenet)"
    add("--source", default="imagenet", help=text)
    text = "epoch of the checkpoints (default: the best, else the newest)"
    add("--epoch", type=at_least(1), help=text)
    text = "YAML file in configs/trainers/METHOD/ (default: the method's, for the protocol)"
    add("--cfg", help=text)
    text = "ViT-B/16, a weight file, ... (default: as in the YAML file)"
    add("--backbone", default="", help=text)
    add("--root", type=path, default=Path("data"), help="folder of the datasets (default: data)")
    add("--output", type=path, default=Path("output/reproduced"), help="folder for the results")
    add("--workers", type=at_least(1), default=1, help="number of tests that run at the same time")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    args.method = exact_name(args.method)
    for name in (args.source, *(args.datasets or ())):
        check_dataset_name(name, known_datasets())
    if args.cfg:
        check_name(args.cfg, config_names(args.method), "YAML file")
    study = study_of(args)
    from .run import LocalExecutor, check_datasets, execute_runs
    from .tables import Summary
    from .write import build_tables, markdown

    for (dataset, shots, seed), file in study.prompts.items():
        print(f"{dataset}, {shots} shots, seed {seed}: {file}")
    collect_results(study)  # raises for links, damaged results, and those of other settings
    check_datasets(study)
    failed = execute_runs(study.sequences, LocalExecutor(args.workers), "testing")
    if len(failed) < len(study.runs()):
        summary = Summary(study, collect_results(study))
        tables = [*build_tables(summary), *compared_with_authors(summary)]
        text = markdown(tables)
        write_text(args.output / f"{args.method}_{study.protocols[0]}.md", text)
        print(f"\n{text}")
    if failed:
        print(f"{len(failed)} tests failed, see above; run the same command again to retry")
        sys.exit(1)
