"""How every command in this folder starts."""

import os
import sys


def run(module: str, resumes: str = "") -> None:
    """Call `main()` of a module, and end with the exit status.

    Args:
        resumes: where the same command resumes after an interrupt; empty: `session.RESUME_HINT`.
    """
    # The project instead of tools/, so that its packages are found first, and Python's own inspect.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from common.start import required_packages

    with required_packages():
        from importlib import import_module

        from runs.session import RESUME_HINT, run_command

        main = import_module(module).main
    run_command(main, resumes or RESUME_HINT)
