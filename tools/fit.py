"""From a folder of images to the best classifier: see `python tools/fit.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("fit.command", "from the images that are done")
