"""Fit and report the calibration of runs: see `python tools/calibrate.py --help`."""

if __name__ == "__main__":
    from _start import run

    run("inference.calibrate_command")
