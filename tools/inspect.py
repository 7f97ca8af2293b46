"""Look inside a model, or at the predictions of a run: see `python tools/inspect.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("inspect")
elif __name__ == "inspect":  # a program that was started in tools/ imports Python's own module
    import os

    with open(os.path.join(os.path.dirname(os.__file__), "inspect.py"), encoding="utf-8") as source:
        exec(compile(source.read(), source.name, "exec"))
