"""The runs of each script in scripts/: table.yaml has published scripts, under their paths, and our
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Script:
    """The runs of a script.

    Words in braces in `settings` and `folders` name positional arguments, variables, and {dataset},
    {name}, {shots} and {seed} of a run.
    """

    does: str = ""  # one sentence for --help
    # Its positional arguments. EPOCHS and KEY VALUE pairs may follow those of a training run or a
    # test
    form: str = ""
    # A key of `PROTOCOLS`; `zero_shot` tests zero-shot CLIP, `ood` prompts in a folder, with --ood;
    # empty: an argument.
    protocol: str = ""
    # 0: the protocol's training run, 1: its test; reproduce: of published prompts
    steps: tuple[int, ...] | str = (0,)
    method: str = ""  # empty: METHOD is the first argument
    cfg: str = ""  # the YAML file; empty: the method's recipe for the protocol
    datasets: tuple[str, ...] = ()  # one run for each, unless DATASET is an argument
    shots: tuple[int, ...] = ()  # the same; empty: the protocol's
    epoch: int | None = (
        None  # that the test loads, if the YAML file is the script's; None: the best or newest
    )
    epochs: Mapping[str, int | None] = field(default_factory=dict)  # the same, for single datasets
    settings: str = ""  # more settings of all runs: KEY VALUE pairs
    train_settings: str = ""  # more settings of training runs
    # Environment variables with their defaults
    variables: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()  # those of the steps, where they are not the protocol's
    repository: str = ""  # of the published script; empty: the script is ours
    note: str = ""  # printed with each start: what users of another form have to know

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
        values: Any = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        scripts[name] = replace(like, **values)
    return scripts


SCRIPTS = read_table()
