"""Fit and report the calibration of runs: see `python tools/calibrate.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("calibrate")
