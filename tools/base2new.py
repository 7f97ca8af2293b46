"""Print the results of runs: `python tools/base2new.py RUN ...`."""

if __name__ == "__main__":
    from mpl import main

    main("base2new")
