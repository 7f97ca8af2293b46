"""Look inside a model, or at the predictions of a run: see `python tools/inspect.py --help`."""

if __name__ == "__main__":
    import sys

    from _start import run

    words = [word for word in sys.argv[1:] if word != "--debug"]
    if words[:1] == ["predictions"]:
        sys.argv.remove("predictions")
        run("inference.inspection.predictions", "from the start")
    else:
        run("inference.inspection.command", "from the start")
elif __name__ == "inspect":  # a program that was started in tools/ imports Python's own module
    import os

    with open(os.path.join(os.path.dirname(os.__file__), "inspect.py"), encoding="utf-8") as source:
        exec(compile(source.read(), source.name, "exec"))
