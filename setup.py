"""The wheel: the folders of this project under one name, so that `clip`, `datasets` and `dassl`
stay the names of other packages. Its imports of its own folders are rewritten; see pyproject.toml.
"""

import re
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from common.renaming import FOLDERS, NAMES, PACKAGE, renamed, with_commands  # noqa: E402
from common.version import __version__  # noqa: E402

EXTRAS = {
    "api": "api",
    "serve": "serve",
    "onnx": "export",
    "hf": "hf",
    "ray": "cluster",
    "parquet": "parquet",
    "trackers": "trackers",
}
MAIN = "from .tools.mpl import main\n\nmain()\n"
# Nothing is imported before somebody asks for it: torch takes seconds
INIT = '''"""{description}."""

from importlib import import_module

__version__ = "{version}"
HOMES = {{"Classifier": "fit.estimator", "load": "inference.load"}}
HOMES |= {{"LoadOptions": "inference.options"}}


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    return getattr(import_module(f"{{__name__}}.{{HOMES[name]}}"), name)
'''


class OneName(build_py):
    """Copies the folders into the package, and rewrites their imports."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit("error: -e does not work: use the folder of the project as it is")
        target = Path(self.build_lib, PACKAGE)
        shutil.rmtree(target, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.sh.log")
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
        shutil.copytree(ROOT / "toolbox/dassl", target / "dassl", ignore=ignored)
        shutil.copy(ROOT / "train.py", target)
        for file in (target / "tools").glob("*.py"):
            if file.name not in ("__init__.py", "mpl.py"):  # `mpl` has the other commands
                file.unlink()
        for file in target.rglob("*.*"):
            if file.suffix in (".py", ".html", ".md", ".sh", ".slurm"):
                text = file.read_text("utf-8")
                if file.suffix == ".py":
                    text = renamed(text, PACKAGE, NAMES)
                file.write_text(with_commands(text), "utf-8")
        init = INIT.format(description=DESCRIPTION, version=__version__)
        (target / "__init__.py").write_text(init)
        (target / "__main__.py").write_text(MAIN)

    def get_source_files(self) -> list[str]:
        return []


def requirements(name: str = "") -> list[str]:
    """The lines of a requirements file that name packages, without their comments, and those of a
    smaller file that it names.
    """
    text = (ROOT / f"requirements{name}.txt").read_text("utf-8")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith(("#", "-"))]
    for other in re.findall(r"^-r requirements(-.+)\.txt$", text, re.MULTILINE):
        found += requirements(other)
    return found


DESCRIPTION = "Modular Prompt Learning and the prompt-learning methods it is compared with"
extras = {name: requirements(f"-{file}") for name, file in EXTRAS.items()}
setup(
    packages=[PACKAGE],
    package_dir={PACKAGE: "."},
    cmdclass={"build_py": OneName},
    install_requires=[*requirements(), "tensorboard"],
    extras_require=extras,
    entry_points={"console_scripts": [f"mpl = {PACKAGE}.tools.mpl:main"]},
)
