"""Start a script of scripts/: `python tools/script.py scripts/mpl/base2new_train.sh eurosat 1`."""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project in place of tools/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import required_packages

with required_packages():
    from experiments.scripts.command import main
    from experiments.session import cli_main

if __name__ == "__main__":
    cli_main(lambda: main(sys.argv[1:]))
