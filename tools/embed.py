"""Write the features of images: see `python tools/embed.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("inference.embed", "from the first file that is missing")
