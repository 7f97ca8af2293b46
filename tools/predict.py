"""Print the most probable classes of images: see `python tools/predict.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("inference.predict", "from the first image")
