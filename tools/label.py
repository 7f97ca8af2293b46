"""Which images of a pool to label next: see `python tools/label.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("label")
