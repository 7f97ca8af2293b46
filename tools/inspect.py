"""Look inside a model: see `python tools/inspect.py --help`."""

import os
import sys

if __name__ == "__main__":  # the project in place of tools/, so that its packages are found first
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if __name__ == "inspect":  # tools/ is on the path of some other program, which imports Python's own module
    with open(os.path.join(os.path.dirname(os.__file__), "inspect.py"), encoding="utf-8") as source:
        exec(compile(source.read(), source.name, "exec"))
else:
    from common.start import required_packages

    with required_packages():
        from experiments.session import cli_main
        from inference.inspection.command import main

    if __name__ == "__main__":
        cli_main(main, "from the start")
