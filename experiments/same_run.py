"""Whether the run in a folder is the run that somebody asks for: the same settings, and a test of the same prompts."""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import trainers
from clip import ClipError, weights_sha256
from common.errors import UsageError
from common.files import checksum, identity
from common.results import CONFIG, read_results
from common.text import read_json
from datasets import title
from trainers.base.partial import FOLDER as PARTIAL_TEST

from .arguments import parse_arguments
from .configs import read_yaml
from .configuration import WEIGHTS, default_settings, flatten, settings_in, setup_cfg, weights_of
from .lock import ANOTHER
from .results import FILE as RESULTS
from .results import RECORDED

# Settings that may differ when a run is resumed: what it computes stays the same, or as near as another machine allows.
RESUMABLE_CHANGES = {"OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "CACHE", "CACHE_GB", "DATASET.ROOT"}
RESUMABLE_CHANGES |= {f"DATALOADER.{key}" for key in ("NUM_WORKERS", "CACHE", "CACHE_GB", "CACHE_TEST")}
RESUMABLE_CHANGES |= {f"MODEL.{key}" for key in ("COMPILE", "CUDA_GRAPHS")}
RESUMABLE_CHANGES |= {f"MODEL.BACKBONE.{key}" for key in ("TOWERS", "CHECKPOINT_TEXT")}
RESUMABLE_CHANGES |= {"INPUT.MAX_PIXELS", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TEST.SELECT_ON_TEST"}
OTHER_FOLDER = f"{ANOTHER}, or delete that folder"
# Options of train.py that change no setting that is compared, by whether a value follows.
OTHER_OPTIONS = {"--output-dir": True, "--model-dir": True, "--report-to": True}
OTHER_OPTIONS |= dict.fromkeys(("--skip-finished", "--quiet", "--debug"), False)
FILES = {"--config-file", "--dataset-config-file", "--chosen"}


def check_finished(folder: Path, results: dict, argv: Sequence[str]) -> None:
    """Check that the finished run in a folder is the one that these arguments of train.py ask for.

    It takes 0.1 ms if the results have the digest of these arguments. Otherwise the settings are set up and compared.

    Args:
        results: its results.json.

    Raises:
        UsageError: the run had other settings, other weights or other prompts.
    """
    args, file = None, folder / CONFIG
    same = results.get("arguments_sha256") == arguments_digest(argv) and same_weights(results)
    if not same or (file.is_file() and results.get("config_sha256") != checksum(file)):
        args = parse_arguments(list(argv))
        check_same_settings(setup_cfg(args), finished=True)
    if "--model-dir" in argv:
        check_same_prompts(args or parse_arguments(list(argv)), results["trainer"], folder)


def same_weights(results: dict) -> bool:
    """Whether the weight file of a run has the recorded checksum. True if the file is gone, or nothing is recorded."""
    recorded = results.get("weights_sha256")
    try:
        return not recorded or weights_sha256(results["backbone"]) == recorded
    except ClipError:
        return True


def arguments_digest(argv: Sequence[str]) -> str | None:
    """The SHA-256 of what decides the settings of a run: arguments, the content of the files that they name, defaults.

    None if the arguments leave the method to a YAML file. Equal digests mean equal settings, except those of the output
    folder; different ones mean nothing.
    """
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word not in OTHER_OPTIONS:
            words.append(word)
        elif OTHER_OPTIONS[word]:
            next(rest, None)
    given = dict(zip(words, words[1:], strict=False))
    if "--trainer" not in given:
        return None
    try:
        files = [file_digest(given[option], option, identity(Path(given[option]))) for option in FILES & given.keys()]
    except OSError:
        return None
    return digest([words, sorted(files), defaults_digest(given["--trainer"])])


@cache
def file_digest(file: str, option: str, _identity: tuple) -> str:
    """The SHA-256 of the settings in a YAML file and its bases, or in a JSON file of chosen settings."""
    return digest([option, read_json(file) if option == "--chosen" else flatten(settings_in(file))])


@cache
def defaults_digest(method: str) -> str:
    return digest(default_settings(method))


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def check_same_settings(cfg: CfgNode, finished: bool, resumes: str = "") -> None:
    """Check that the run in the output folder, if there is one, was started with these settings.

    A setting that it lacks, as its version did not know it, counts as its default.

    If it is `finished`, its results would count as those of this run: results.json is compared, too. The run in
    `resumes`, if given, is checked instead.
    """
    folder, before = Path(resumes or cfg.OUTPUT_DIR), {}
    remedy = "resume it with its own settings" if resumes else OTHER_FOLDER
    file = folder / CONFIG
    try:
        begun = any(any(folder.glob(kept)) for kept in ("*/model*.pth.tar*", f"{PARTIAL_TEST}/*.safetensors", RESULTS))
        if file.is_file() and (finished or begun):
            before = flatten(read_yaml(file))
            if not before:
                raise ValueError("no settings")
        elif finished:
            raise UsageError(f"{folder} has results and no {CONFIG}, which says their settings", OTHER_FOLDER, folder)
        if finished:  # the file may have been copied here from another run
            file = folder / RESULTS
            recorded = dict(read_json(file).items())
            if recorded.get("dataset") == title(cfg):
                recorded["dataset"] = cfg.DATASET.NAME
            before |= {setting: recorded[key] for key, setting in RECORDED.items() if key in recorded}
    except UsageError as error:
        if error.where == folder:
            raise
        raise UsageError(f"{file} is damaged", "restore or delete it", file) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{file} is damaged", "restore or delete it", file) from error
    if not before:
        return
    now = {key: as_read(value) for key, value in flatten(cfg).items()}
    defaults = default_settings(cfg.TRAINER.NAME) if "TRAINER" in cfg else {}
    before = {key: as_read(defaults[key]) for key in now.keys() & defaults.keys()} | before
    try:
        now[WEIGHTS] = weights_of(cfg) if before.get(WEIGHTS) else before.get(WEIGHTS)  # earlier versions lack it
    except ClipError:  # the file is not there: a run that is not finished says so later
        before.pop(WEIGHTS)
    may_differ = RESUMABLE_CHANGES
    if cfg.DATASET.NAME == "ImageFolder":  # its root says which images it has
        same = os.path.abspath(str(before.get("DATASET.ROOT"))) == os.path.abspath(cfg.DATASET.ROOT)
        may_differ = RESUMABLE_CHANGES - (set() if same else {"DATASET.ROOT"})
    changed = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key] and key not in may_differ]
    if changed == [WEIGHTS]:
        name, hashes = cfg.MODEL.BACKBONE.NAME, [f"{values[WEIGHTS]!s:.12}..." for values in (before, now)]
        what = f"{folder} holds a run with other weights: {name} had SHA-256 {hashes[0]}, now it has {hashes[1]}"
        raise UsageError(what, f"restore {name}, or {remedy}", folder)
    if changed:
        others = f" ({', '.join(changed[1:])} also differ)" if changed[1:] else ""
        raise UsageError(
            f"{folder} holds a run with {changed[0]} {before[changed[0]]}, this one has {now[changed[0]]}{others}",
            remedy,
            folder,
        )


def check_same_prompts(args: Namespace, trainer: str, folder: Path) -> None:
    """Check that a finished evaluation is of the checkpoint that this one names, as far as its results say which."""
    method, path = trainers.methods().get(trainer), None
    found = (args.model_dir and read_results(folder)) or {}
    tested, epoch = found.get("checkpoint_sha256"), found.get("tested_epoch")
    if tested and method:
        with suppress(UsageError):  # it is gone
            path = method.checkpoint_in(args.model_dir, args.load_epoch)
    differs = checksum(Path(path)) != tested if path else epoch and args.load_epoch not in (None, epoch)
    if differs:
        asked = path or f"epoch {args.load_epoch}"
        raise UsageError(f"{folder} holds a test of another checkpoint, of epoch {epoch}, than {asked}", OTHER_FOLDER)


def as_read(value: Any) -> Any:
    """A setting as YAML gives it back: tuples are lists there."""
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list | tuple) else value
