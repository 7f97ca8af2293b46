"""Test published checkpoints: see `python tools/reproduce.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("studies.reproduce")
