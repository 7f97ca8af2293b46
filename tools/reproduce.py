"""Test published checkpoints: see `python tools/reproduce.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("reproduce")
