"""Exported folders on the Hugging Face Hub: download one, or upload one."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from common.errors import UsageError, one_line
from common.results import CALIBRATION, SEEN

from .artefact import EXPORT_CONFIG_FILE, PROMPTS

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
LOGIN = "log in by `hf auth login`, or set HF_TOKEN to a token that may read and write there"


def download(name: str, revision: str | None = None) -> Path:
    """The folder with the files of a repository that are read in the cache of huggingface_hub
    (HF_HOME).

    Without a connection, these are the files that were downloaded last. Arguments and errors are
    those of `inference.load.load`.
    """
    check_name(name)
    files = [EXPORT_CONFIG_FILE, PROMPTS, CALIBRATION, SEEN]
    with answers(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def check_login(name: str) -> None:
    """Raise UsageError if `name` is not the name of a repository, or there is no token of the
    Hub.
    """
    check_name(name)
    if not get_token():
        raise UsageError("there is no token for the Hugging Face Hub", LOGIN)


def upload(folder: Path, files: Sequence[str], name: str, replaced: Sequence[str] = ()) -> str:
    """Upload files of an exported folder to the repository `name` as one commit. A new repository
    is private.

    Files of the repository with the names `replaced` that are not among `files` are deleted.

    Returns:
        the address of the repository.

    Raises:
        UsageError: the Hub refuses it, or there is no connection.
    """
    api = HfApi()
    with answers(name):
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload prompts",
            allow_patterns=list(files),
            delete_patterns=list(replaced),
        )
    return address


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{one_line(name)!r} is not the name of a model on the Hub", "give USER/NAME"
        )


@contextmanager
def answers(name: str) -> Iterator[None]:
    """Requests about a repository: UsageError if the Hub refuses one, or does not answer."""
    try:
        yield
    except RepositoryNotFoundError as error:
        fault = f"the Hub has no model {name} that you may use"
        raise UsageError(fault, f"check the name; for a private model {LOGIN}") from error
    except (OSError, ValueError, HTTPError) as error:  # ValueError: an answer of another form
        fault = f"a request about {name} to {HfApi().endpoint} failed ({one_line(error)})"
        raise UsageError(
            fault, f"check the connection, and try again; if it is refused, {LOGIN}"
        ) from error
