"""What a model hub has beside the weights: a repository of open_clip's form, tokenisers, and sizes of text towers.

huggingface_hub keeps all of it in its cache (HF_HOME), so that the next run needs no network. Nothing that it holds is
run: tokenisers and configurations are data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from common.errors import one_line

from .errors import ClipError
from .tokenizer import OtherTokenizer, Tokenizer

PREFIX = "hf-hub:"
CONFIG = "open_clip_config.json"
# Names of weights in a repository or a folder of open_clip's form, the best first.
WEIGHTS: tuple[str, ...] = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin"),
)
TOKENISER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
PACKAGE = "pip install -r requirements-hf.txt"


def repository(name: str, cache: str | None) -> Path:
    """The weights of hf-hub:OWNER/NAME with `open_clip_config.json` in their folder; downloaded if they are not there.

    Raises:
        ClipError: there is no such repository, or there is no connection.
    """
    repo, files = name.removeprefix(PREFIX), WEIGHTS
    for only_here in (True, False):
        try:
            hf_hub_download(repo, CONFIG, cache_dir=cache, local_files_only=only_here)
            if not only_here:
                there = {entry.rfilename for entry in HfApi().model_info(repo).siblings or ()}
                files = tuple(file for file in WEIGHTS if file in there)
            for file in files:
                try:
                    return Path(hf_hub_download(repo, file, cache_dir=cache, local_files_only=only_here))
                except OSError:
                    if not only_here:
                        raise
        except (OSError, ValueError, HTTPError) as error:
            if not only_here:
                remedy = (
                    f"check the name and the connection, or put {CONFIG} and its weights into a folder, and give it"
                )
                raise ClipError(f"cannot download {name} ({one_line(error)})", remedy) from error
    what = f"{name} has no weights of open_clip's form"
    raise ClipError(what, f"choose a repository with {WEIGHTS[0]} and {CONFIG}")


def config_file(name: str, cache: str | None) -> Path:
    """The configuration of hf-hub:OWNER/NAME, without its weights; arguments and errors are those of `repository`."""
    try:
        return Path(hf_hub_download(name.removeprefix(PREFIX), CONFIG, cache_dir=cache, local_files_only=True))
    except (OSError, ValueError):
        return repository(name, cache).with_name(CONFIG)


def in_folder(folder: Path) -> Path:
    """The weight file of a folder of open_clip's form; ClipError if there is none."""
    for file in WEIGHTS:
        if (folder / file).is_file() and (folder / CONFIG).is_file():
            return folder / file
    raise ClipError(f"{folder} is not a folder of open_clip's form", f"put {CONFIG} and {WEIGHTS[0]} into it")


def tokenizer(text_cfg: dict, folder: Path | None, online: bool) -> Tokenizer:
    """The tokeniser that a configuration names.

    Args:
        text_cfg: of open_clip's configuration.
        folder: of the weights; a tokeniser there comes before one of the hub.
        online: whether one that is not there may be downloaded.

    Raises:
        ClipError: there is none, or the library transformers is missing.
    """
    length, name = text_cfg.get("context_length", 77), text_cfg.get("hf_tokenizer_name")
    if not name:
        return Tokenizer(length)
    from open_clip.tokenizer import HFTokenizer

    here = folder if folder and any((folder / file).is_file() for file in TOKENISER_FILES) else None
    options = {"tokenizer_mode": text_cfg.get("tokenizer_mode"), **text_cfg.get("tokenizer_kwargs", {})}

    def make(only_here: bool) -> Any:
        return HFTokenizer(str(here or name), context_length=length, local_files_only=only_here, **options)

    found = from_hub(make, f"the tokeniser {name}", here, folder, online and not here)
    return OtherTokenizer(found, found.tokenizer.convert_ids_to_tokens, length, name)


def text_model(text_cfg: dict, folder: Path | None, online: bool) -> dict:
    """A configuration whose text tower of the library transformers is named by a folder with its `config.json`.

    Arguments and errors are those of `tokenizer`.
    """
    name = text_cfg.get("hf_model_name")
    if not name:
        return text_cfg
    if folder and (folder / "config.json").is_file():
        return text_cfg | {"hf_model_name": str(folder)}

    def find(only_here: bool) -> Path:
        import transformers  # noqa: F401 - the tower needs it

        return Path(hf_hub_download(name, "config.json", local_files_only=only_here)).parent

    what = f"config.json of the text tower {name}"
    return text_cfg | {"hf_model_name": str(from_hub(find, what, None, folder, online))}


def from_hub(make: Callable, what: str, here: Path | None, folder: Path | None, online: bool) -> Any:
    """What `make(only_here)` returns: of files that are here or, if they are not and `online`, of the hub."""
    try:
        try:
            return make(True)
        except (OSError, ValueError):
            if not online:
                raise
        return make(False)
    except ImportError as error:
        raise ClipError(f"{what} needs the library transformers", PACKAGE) from error
    except Exception as error:  # of any library that reads these files
        place = f"its files into {folder}" if folder else "the weights into a folder with its files"
        remedy = f"run `python tools/prepare.py backbone` with a connection, or put {place}"
        state = f"in {here} cannot be read" if here else "is not on this machine"
        raise ClipError(f"{what} {state} ({one_line(error)})", remedy) from error


def bytes_of(repo: str) -> int:
    """The size of the weights that `repository` would download; 0 if the hub does not say it."""
    sizes = {entry.rfilename: entry.size or 0 for entry in HfApi().model_info(repo, files_metadata=True).siblings or ()}
    return next((sizes[file] for file in WEIGHTS if file in sizes), 0)
