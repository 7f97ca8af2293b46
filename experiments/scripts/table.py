"""The runs of each script in scripts/: table.yaml has published scripts, under their paths, and our own."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Script:
    """The runs of a script.

    Words in braces in `settings`, `folders`, `shots_name` name positional arguments, variables, and {dataset},
    {name}, {shots} and {seed} of a run.

    Attributes:
        does: one sentence for --help.
        form: its positional arguments. EPOCHS and KEY VALUE pairs may follow those of a training run or a test.
        protocol: a key of `PROTOCOLS`; `zero_shot` tests zero-shot CLIP, `ood` prompts in a folder, with --ood; empty
            if PROTOCOL is an argument.
        steps: 0 is the protocol's training run, 1 its test, `reproduce` the test of published prompts.
        method: empty if METHOD is the first argument.
        cfg: the YAML file; empty: the method's recipe for the protocol.
        datasets, shots: one run for each, unless they are arguments; no shots: the protocol's.
        epoch: the epoch that the test loads, if the YAML file is the script's; None: the best or newest.
        epochs: the same, for single datasets.
        settings: more settings of all runs: KEY VALUE pairs.
        train_settings: more settings of training runs.
        variables: environment variables with their defaults.
        folders: those of the steps, where they are not the protocol's.
        shots_name: {shots} in the folders.
        repository: of the published script; empty: the script is ours.
        note: printed with each start: what users of another form have to know.
    """

    does: str = ""
    form: str = ""
    protocol: str = ""
    steps: tuple[int, ...] | str = (0,)
    method: str = ""
    cfg: str = ""
    datasets: tuple[str, ...] = ()
    shots: tuple[int, ...] = ()
    epoch: int | None = None
    epochs: Mapping[str, int | None] = field(default_factory=dict)
    settings: str = ""
    train_settings: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    shots_name: str = "{shots}"
    repository: str = ""
    note: str = ""

    @property
    def positions(self) -> str:
        """All positional arguments."""
        return self.form if self.method else f"METHOD {self.form}"

    @property
    def usage(self) -> str:
        """Its arguments, required and optional."""
        if self.steps == "reproduce":
            return f"{self.positions} [OPTION ...]"
        if "EPOCHS" in self.form or self.protocol in ("zero_shot", "ood"):
            return f"{self.positions} [KEY VALUE ...]"
        return f"{self.positions} [EPOCHS] [KEY VALUE ...]".strip()


def read_table() -> dict[str, Script]:
    """The scripts by their paths below scripts/, without .sh."""
    scripts: dict[str, Script] = {}
    for name, entry in yaml.safe_load(Path(__file__).with_name("table.yaml").read_text()).items():
        like = scripts.get(entry.pop("like", f"any/{Path(name).name}"), Script())
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        scripts[name] = replace(like, **values)
    return scripts


SCRIPTS = read_table()
