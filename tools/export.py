"""Write learned prompts to a folder to keep and pass on: see `python tools/export.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":  # the project in place of tools/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import required_packages

with required_packages():
    from experiments.session import cli_main
    from inference.export import main

if __name__ == "__main__":
    cli_main(main, "from the start")
