"""A linear probe of CLIP: see `python tools/linear_probe.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("experiments.linear_probe")
