"""Compare runs by their predictions: `python tools/compare.py FOLDER FOLDER ...`."""

if __name__ == "__main__":
    from mpl import main

    main("compare")
