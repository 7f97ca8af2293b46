"""Merge models of one method into one: see `python tools/merge.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("runs.merge", "from the start")
