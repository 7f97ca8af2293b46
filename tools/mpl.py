"""The command `mpl` of an installation: `mpl fit ...` is `python tools/fit.py ...` of the clone,
whose files call `main` here.
"""

import os
import sys

# The words of a command: its module, where the same command resumes, and what it does
COMMANDS = {
    "fit": ("fit.command", "from the images that are done", "the best classifier for a folder"),
    "label": ("fit.label.command", "from the images that are done", "which images to label next"),
    "predict": ("inference.predict", "from the first image", "the most probable classes of images"),
    "embed": ("inference.embed", "from the first file that is missing", "the features of images"),
    "calibrate": ("inference.calibrate_command", "", "certainty, sets of classes, unknown images"),
    "export": ("inference.export", "from the start", "a folder to keep and pass on; ONNX; the Hub"),
    "serve": ("inference.serving.command", "from the start", "a page, or JSON over HTTP"),
    "inspect predictions": (
        "inference.inspection.predictions",
        "from the start",
        "the predictions of a run",
    ),
    "inspect": (
        "inference.inspection.command",
        "from the start",
        "words near to prompts, and attention",
    ),
    "train": ("train", "", "train or test one method on one dataset"),
    "study": ("studies.command", "", "methods, datasets and seeds side by side"),
    "compare": ("studies.compare", "", "two methods by their predictions"),
    "reproduce": ("studies.reproduce", "", "test published checkpoints"),
    "base2new": ("measures.results", "", "the results of runs"),
    "prepare backbone": ("clip.fetch", "where it stopped", "download a backbone"),
    "prepare": ("datasets.preparing.command", "where it stopped", "download and check datasets"),
    "recipe": ("studies.scripts", "", "the published settings of a method, for scripts"),
    "demo": ("studies.demo", "", "prompt learning on a laptop"),
}
COMPLETION = "_ARGCOMPLETE"  # which argcomplete sets


def main(file: str = "") -> None:
    """Run the command that the first words name.

    Args:
        file: the first word, by which a file in this folder is named.
    """
    if file:
        # The project instead of tools/, so that its packages are found first, and Python's own
        # inspect
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from common.start import required_packages

    with required_packages():
        from runs.session import RESUME_HINT, run_command

    completes = COMPLETION in os.environ and not file
    words = typed() if completes else [*file.split(), *sys.argv[1:]]
    shown = [word for word in words if word != "--debug"]
    name = next((name for name in COMMANDS if shown[: len(name.split())] == name.split()), "")
    if not name:
        run_command(lambda: explain(words))
        return
    if completes:  # `common.start.Parser` completes what comes after these words
        os.environ[COMPLETION] = str(1 + len(name.split()))
    module, resumes, _ = COMMANDS[name]
    for word in name.split():
        words.remove(word)
    sys.argv = [sys.argv[0] + name.removeprefix(file) if file else f"mpl {name}", *words]
    with required_packages():
        from importlib import import_module

        package = __package__.removesuffix("tools") if __package__ else ""
        command = import_module(package + module).main
    run_command(command, resumes or RESUME_HINT)


def typed() -> list[str]:
    """The words in front of the one that a shell asks to complete."""
    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    return line.split(" ")[1:-1]


def explain(words: list[str]) -> None:
    """Print the commands. Raises UsageError for another one."""
    from common.errors import check_name

    if COMPLETION in os.environ:
        from common.start import Parser

        parser = Parser()
        parser.add_argument("command", choices=[name for name in COMMANDS if " " not in name])
        parser.parse_args()
    if words and words[0] not in ("-h", "--help"):
        check_name(words[0], [name for name in COMMANDS if " " not in name], "command of mpl")
    print("usage: mpl COMMAND ...; mpl COMMAND --help explains it\n")
    width = max(map(len, COMMANDS))
    for name, (_, _, line) in COMMANDS.items():
        print(f"  {name:{width}}  {line}")


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    main()
