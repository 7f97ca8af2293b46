"""Which images of a pool to label next: see `python tools/label.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("fit.label.command", "from the images that are done")
