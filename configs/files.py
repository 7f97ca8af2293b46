"""YAML files: those in configs/ by name, and how they are read."""

import io
from pathlib import Path

from dassl.config import CfgNode

from common.errors import UsageError
from common.start import ROOT
from common.text import read_text

from .methods import methods, plugin_of

CONFIGS = ROOT / "configs"
YAML_BYTES = 1 << 20  # the limit of Dassl's configuration files


def config_folder(method: str) -> Path:
    """Where the YAML files of a method are; of one in a file of --plugin, beside that file if not
    in configs/.
    """
    folder = CONFIGS / "trainers" / method
    if folder.is_dir():  # no need to import the methods, which takes seconds
        return folder
    folder = CONFIGS / "trainers" / (methods()[method].config_folder or method)
    file = plugin_of(method)
    return folder if file is None or folder.is_dir() else file.parent / folder.name


def config_names(method: str) -> list[str]:
    """The names of the YAML files of a method."""
    return sorted(file.stem for file in config_folder(method).glob("*.yaml"))


def known_datasets() -> tuple[str, ...]:
    """The names of the YAML files in configs/datasets/."""
    return tuple(sorted(file.stem for file in (CONFIGS / "datasets").glob("*.yaml")))


def read_yaml(file: Path) -> dict:
    """The content of a YAML file of keys and plain values, read within the bounds of Dassl's
    configuration files.
    """
    stream = io.StringIO(read_text(file, YAML_BYTES))
    stream.name = str(file)  # type: ignore[misc]  # for messages
    try:
        return CfgNode.load_cfg(stream)
    except ValueError as error:
        raise UsageError(str(error), where=file) from error
