"""Files of a model hub beside the weights: a repository of open_clip's form, tokenisers, and sizes
of text towers.

huggingface_hub keeps all of it in its cache (HF_HOME), so that the next run needs no network.
Nothing that it holds is run: tokenisers and configurations are data. A configuration cannot choose
whose files are fetched: they are those of the repository that the user names, and of the names in
open_clip's own ones.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from common.errors import one_line
from common.files import checksum_once

from .configurations import NAMES, TOKENISER_FILES, VOCABULARIES, text_tower, tokeniser_data
from .errors import ClipError
from .tokenizer import OtherTokenizer, Tokenizer

PREFIX = "hf-hub:"
CONFIG = "open_clip_config.json"
# Names of weights in a repository or a folder of open_clip's form, the best first.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
PACKAGE = "pip install -r requirements-hf.txt"


def repository(name: str, cache: str | None) -> Path:
    """The weights of hf-hub:OWNER/NAME with `open_clip_config.json` in their folder; downloaded if
    they are not there.

    Raises:
        ClipError: there is no such repository, there is no connection, or the weights are damaged.
    """
    repo = name.removeprefix(PREFIX)
    remedy = (
        f"check the name and the connection, or put {CONFIG} and its weights into a folder, "
        "and give it"
    )
    config = hub_file(repo, [CONFIG], cache, remedy)
    return hub_file(repo, WEIGHTS, cache, remedy, config.parent.name)


def hub_file(
    repo: str, files: Sequence[str], cache: str | None, remedy: str, revision: str | None = None
) -> Path:
    """The first of some files that the cache has of a repository, or else the first that the hub
    has, downloaded.

    The name of a large file in the cache is the SHA-256 that the hub says it has.

    Raises:
        ClipError: neither has one, or the file has another SHA-256.
    """
    here = cached_file(repo, files, cache, revision)
    if not here:
        try:
            there = {
                entry.rfilename
                for entry in HfApi().model_info(repo, revision=revision).siblings or ()
            }
            file = next((file for file in files if file in there), None)
            here = hf_hub_download(repo, file, cache_dir=cache, revision=revision) if file else None
        except (OSError, ValueError, HTTPError) as error:
            raise ClipError(
                f"cannot download {repo} of the Hugging Face Hub ({one_line(error)})", remedy
            ) from error
    if not here:
        raise ClipError(
            f"{repo} of the Hugging Face Hub has no {files[0]}", "choose another repository"
        )
    blob = Path(here).resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and checksum_once(blob) != blob.name:
        raise ClipError(
            f"{here} is damaged (its SHA-256 differs)", f"delete {blob}, and start again", blob
        )
    return Path(here)


def cached_file(
    repo: str, files: Sequence[str], cache: str | None = None, revision: str | None = None
) -> str | None:
    """The first of some files of a repository that an earlier download has left in the cache."""
    try:
        paths = [try_to_load_from_cache(repo, file, cache, revision) for file in files]
    except ValueError:  # no name of a repository
        return None
    return next((path for path in paths if isinstance(path, str)), None)


def config_file(name: str, cache: str | None) -> Path:
    """The configuration of hf-hub:OWNER/NAME, without its weights; arguments and errors are those
    of `repository`.
    """
    here = cached_file(name.removeprefix(PREFIX), [CONFIG], cache)
    return Path(here) if here else repository(name, cache).with_name(CONFIG)


def in_folder(folder: Path) -> Path:
    """The weight file of a folder of open_clip's form; ClipError if there is none."""
    for file in WEIGHTS:
        if (folder / file).is_file() and (folder / CONFIG).is_file():
            return folder / file
    raise ClipError(
        f"{folder} is not a folder of open_clip's form", f"put {CONFIG} and {WEIGHTS[0]} into it"
    )


def source_of(name: str, repo: str | None) -> str:
    """The repository to ask for a tokeniser or text tower: `name`, if it is one of open_clip's."""
    configs: list[Any] = [open_clip.get_model_config(arch) for arch in open_clip.list_models()]
    known = {config["text_cfg"].get(key) for config in configs for key in NAMES}
    return name if name in known else repo or ""


def tokenizer(text_cfg: dict, folder: Path, repo: str | None) -> Tokenizer:
    """The tokeniser that a configuration names.

    Args:
        text_cfg: of open_clip's configuration.
        folder: of the weights; a tokeniser there comes before one of the hub.
        repo: who is asked for a name which is not open_clip's own; None: only the folder.

    Raises:
        ClipError: there is none, or the library transformers is missing.
    """
    length = text_cfg.get("context_length", 77)
    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return Tokenizer(length)
    from open_clip.tokenizer import HFTokenizer

    here = folder if repo is None or has_tokeniser(folder) else None
    source = source_of(name, repo)
    options: dict[str, Any] = dict(text_cfg.get("tokenizer_kwargs") or {})
    options["tokenizer_mode"] = text_cfg.get("tokenizer_mode")

    def make(only_here: bool) -> Any:
        how: dict[str, Any] = {"allow_patterns": TOKENISER_FILES, "local_files_only": only_here}
        files = here or Path(snapshot_download(source, **how))
        # It has no more than its options, after a download that was interrupted
        if not has_tokeniser(files):
            raise FileNotFoundError(f"{files} has none of {', '.join(VOCABULARIES)}")
        with tokeniser_data(files) as data:
            encode = HFTokenizer(context_length=length, **data, **options)
        return OtherTokenizer(encode, encode.tokenizer.convert_ids_to_tokens, length, name)

    return from_hub(make, f"the tokeniser {name}", here, folder)


def has_tokeniser(folder: Path) -> bool:
    return any((folder / file).is_file() for file in VOCABULARIES)


def text_model(text_cfg: dict, folder: Path, repo: str | None) -> dict:
    """A configuration whose `hf_model_name` is the kind and the sizes of a tower of transformers.

    Arguments and errors are those of `tokenizer`.
    """
    name = text_cfg.get("hf_model_name")
    if not name:
        return text_cfg
    here = folder if repo is None or (folder / "config.json").is_file() else None
    source = source_of(name, repo)

    def read(only_here: bool) -> dict:
        if here:
            return text_tower(here / "config.json")
        return text_tower(Path(hf_hub_download(source, "config.json", local_files_only=only_here)))

    part = f"config.json of the text tower {name}"
    return text_cfg | {"hf_model_name": from_hub(read, part, here, folder)}


def from_hub(make: Callable, part: str, here: Path | None, folder: Path) -> Any:
    """What `make(only_here)` returns: of files in `here` or, without it, of the hub and its
    cache.
    """
    try:
        try:
            return make(True)
        except (OSError, ValueError):
            if here:
                raise
        return make(False)
    except ClipError:
        raise
    except ImportError as error:
        raise ClipError(f"{part} needs the library transformers", PACKAGE) from error
    except BaseException as error:  # of any library that reads these files; Rust's panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        remedy = f"put its files into {folder}"
        if not here:
            remedy = f"run `python tools/prepare.py backbone` with a connection, or {remedy}"
        state = f"in {here} cannot be read" if here else "is not on this machine"
        raise ClipError(f"{part} {state} ({one_line(error)})", remedy) from error


def bytes_of(repo: str) -> int:
    """The size of the weights that `repository` would download; 0 if the hub does not say it."""
    sizes = {
        entry.rfilename: entry.size or 0
        for entry in HfApi().model_info(repo, files_metadata=True).siblings or ()
    }
    return next((sizes[file] for file in WEIGHTS if file in sizes), 0)
