"""Write a CLIP with random weights: see `python tools/random_clip.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("runs.random_clip")
