"""YAML files: those in configs/ by name, and how they are read."""

import io
from pathlib import Path

from dassl.config import get_cfg_default

from common.errors import UsageError
from common.start import ROOT
from common.text import read_text

from .methods import methods

CONFIGS = ROOT / "configs"
YAML_BYTES = 1 << 20  # the limit of Dassl's configuration files


def config_folder(method: str) -> Path:
    """Where the YAML files of a method are."""
    return CONFIGS / "trainers" / methods()[method].config_folder


def default_config(method: str, protocol: str) -> str:
    """Name of the YAML file that a method's scripts use for `base2new`, `few_shot` or `cross_dataset`.

    It is the one that `defaults`, a text file beside the YAML files, names for the protocol, or the only one there.

    Raises:
        UsageError: there are several YAML files and no `defaults`, or there is no YAML file.
    """
    folder = config_folder(method)
    file, names = folder / "defaults", sorted(path.stem for path in folder.glob("*.yaml"))
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        words = line.partition("#")[0].split()
        if words[:1] == [protocol] and len(words) > 1:
            return words[1]
    if len(names) != 1:
        known = f"name one of {', '.join(names)}" if names else f"add one to {folder}"
        raise UsageError(f"{method} has {len(names)} YAML files and no default one for {protocol}", known)
    return names[0]


def read_yaml(file: Path) -> dict:
    """The content of a YAML file, read within the bounds of Dassl's configuration files.

    Raises:
        UsageError: it cannot be read, or is not YAML with keys and plain values.
    """
    stream = io.StringIO(read_text(file, YAML_BYTES))
    stream.name = str(file)  # type: ignore[misc]  # for messages
    try:
        return get_cfg_default().load_cfg(stream)
    except ValueError as error:
        raise UsageError(str(error), where=file) from error
