"""The settings of a method in a protocol, printed for the scripts in scripts/any/."""

import os
from pathlib import Path

from common.errors import check_name
from common.start import ROOT, Parser
from configs.files import CONFIGS, config_folder
from configs.methods import methods
from configs.recipes import recipe
from inference.arguments import add_plugin_option


def main(argv: list[str] | None = None) -> None:
    """Print the exact name of METHOD, its YAML file, and its settings, a line of each."""
    parser = Parser(description="Print the settings of a method in a protocol.")
    for name in ("method", "protocol", "dataset"):
        parser.add_argument(name)
    parser.add_argument("shots", type=int, help="images of each class")
    parser.add_argument("--cfg", default="", help="the YAML file that the user has chosen")
    parser.add_argument("--backbone", default="", help="small, ViT-B/16, ...")
    add_plugin_option(parser)
    args = parser.parse_args(argv)
    used_name = exact_name(args.method)
    used = recipe(used_name, args.protocol, args.dataset, args.shots, args.cfg, args.backbone)
    print(used_name)
    folder = config_folder(used_name)
    place = ROOT if folder.is_relative_to(ROOT) else Path()
    print(os.path.relpath(folder, place), f"{used.cfg}.yaml", sep="/")
    print(*used.settings)


def exact_name(method: str) -> str:
    """The name of a method in any case. Only a plug-in's, such as DePT+MPL, waits for torch."""
    names = [folder.name for folder in (CONFIGS / "trainers").iterdir() if folder.is_dir()]
    if method.lower() not in map(str.lower, names):
        names = list(methods())
    exact = {name.lower(): name for name in names}.get(method.lower(), method)
    check_name(exact, names, "method")
    return exact
