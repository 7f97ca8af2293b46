"""Run and compare methods, datasets and seeds: see `python tools/study.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("study")
