"""Download, verify and arrange datasets: see `python tools/prepare.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("datasets.preparing.command", "where it stopped")
