"""Exported folders on the Hugging Face Hub: download one, or upload one.

Of a repository, only the two files of an exported folder are downloaded, under the names that `artefact` has for them.
Nothing in them runs. The Hub states their sizes, which are checked first.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # type: ignore[attr-defined]  # of the HTTP library that this version uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from common.errors import UsageError, one_line

from .artefact import CONFIG, LARGEST_CONFIG, LARGEST_PROMPTS, PROMPTS

LARGEST = {CONFIG: LARGEST_CONFIG, PROMPTS: LARGEST_PROMPTS}
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
SECONDS = 20  # to wait for an answer about a repository
LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


class NoConnection(UsageError):
    """Raised if the Hub does not answer."""


def download(name: str, revision: str | None = None) -> Path:
    """The folder with the files of a repository, in the cache of huggingface_hub (HF_HOME).

    Without a connection, the files that were downloaded last are used. Arguments and errors are those of
    `PromptedClassifier.from_pretrained`.
    """
    check_name(name)
    api = HfApi()
    try:
        with answers(name):
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=SECONDS)
            sizes = {file.rfilename: file.size for file in info.siblings or []}
            for file, most in LARGEST.items():
                if file not in sizes:
                    what = f"the model {name} on the Hub has no {file}"
                    raise UsageError(what, "give one that tools/export.py wrote")
                if not isinstance(size := sizes[file], int) or size > most:
                    what = f"{file} of the model {name} is larger than {most:,} bytes, or has no known size"
                    raise UsageError(what, "give another model")
            found = [api.hf_hub_download(name, file, revision=revision) for file in LARGEST]
    except NoConnection as error:
        try:
            found = [api.hf_hub_download(name, file, revision=revision, local_files_only=True) for file in LARGEST]
        except LocalEntryNotFoundError:
            raise error from None
    return Path(found[0]).parent


def check_login(name: str) -> None:
    """Raise UsageError if `name` is not the name of a repository, or there is no token of the Hub."""
    check_name(name)
    if not get_token():
        raise UsageError("there is no token for the Hugging Face Hub", LOGIN)


def upload(folder: Path, files: Sequence[str], name: str, replaced: Sequence[str] = ()) -> str:
    """Upload files of a folder as one commit. A new repository is private.

    Args:
        folder, files: the exported folder, and the names of its files.
        name: `user/name`.
        replaced: files that are deleted from the repository if they are not among `files`.

    Returns:
        the address of the repository.

    Raises:
        UsageError: the Hub refuses it, or there is no connection.
    """
    api = HfApi()
    with answers(name):
        address = str(api.create_repo(name, private=True, exist_ok=True))
        there = {file.rfilename for file in api.model_info(name, timeout=SECONDS).siblings or []}
        old = [CommitOperationDelete(file) for file in replaced if file in there and file not in files]
        new = [CommitOperationAdd(file, folder / file) for file in files]
        api.create_commit(name, [*new, *old], commit_message="Upload prompts")
    return address


def check_name(name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > 200:
        raise UsageError(f"{one_line(name)!r} is not the name of a model on the Hub", "give USER/NAME")


@contextmanager
def answers(name: str) -> Iterator[None]:
    """Requests about a repository: UsageError if the Hub refuses one, NoConnection if it does not answer."""
    try:
        yield
    except RepositoryNotFoundError as error:
        what = f"the Hub has no model {name} that you may read"
        raise UsageError(what, f"check the name; for a private model {LOGIN}") from error
    except HfHubHTTPError as error:
        status, remedy = error.response.status_code, "check it, or try again later"
        if status in (401, 403):
            remedy = f"{LOGIN} with a token that may write there"
        what = f"the Hub refuses a request about {name} (HTTP {status}: {one_line(error)})"
        raise UsageError(what, remedy) from error
    except UsageError:
        raise
    except (OSError, HTTPError, ValueError, TypeError, LookupError, AttributeError) as error:  # or of another form
        what = f"no answer about {name} from {HfApi().endpoint} ({one_line(error)})"
        raise NoConnection(what, "check the connection, and try again") from error
