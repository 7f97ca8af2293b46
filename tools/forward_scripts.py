"""Write the scripts that forward the published projects' names to this project's, from the table scripts/forwards."""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project in place of tools/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import ROOT

TRAINING = "DATASET SEED [EPOCHS] [KEY VALUE ...]"
ARGUMENTS = {"few_shot": "DATASET SHOTS WEIGHTS [OPTION ...]", "reproduce": "DATASET SEED WEIGHTS [OPTION ...]"}


def forwards() -> dict[str, str]:
    """The name of each script, below scripts/, and its text."""
    texts = {}
    for line in (ROOT / "scripts/forwards").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, script, method, *rest = line.split()
        reproduces = script == "reproduce"
        protocol, cfg = (rest[0], rest[1:]) if reproduces else ("", rest)
        arguments = ARGUMENTS.get(protocol, ARGUMENTS["reproduce"]) if reproduces else TRAINING
        call = " ".join(filter(None, (method, protocol)))
        texts[name] = (
            "#!/usr/bin/env bash\n"
            f"# {Path(name).name} {arguments}\n"
            f"# The published name of: scripts/{script}.sh {call} {arguments}\n"
            "# Environment: see scripts/common.sh.\n"
            + (f"CFG=${{CFG:-{cfg[0]}}}\n" if cfg else "")
            + f'source "$(dirname "$0")/../{script}.sh" {call} "$@"\n'
        )
    return texts


def main() -> None:
    for name, text in forwards().items():
        file = ROOT / "scripts" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    main()
