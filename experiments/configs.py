"""The YAML files in configs/, by name."""

from pathlib import Path

import trainers
from common.errors import UsageError
from common.start import ROOT

CONFIGS = ROOT / "configs"


def config_folder(method: str) -> Path:
    """Where the YAML files of a method are."""
    return CONFIGS / "trainers" / trainers.methods()[method].config_folder


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
