"""From a folder of images to the best classifier: see `python tools/fit.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("fit")
