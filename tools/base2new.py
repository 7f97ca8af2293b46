"""Print the results of runs: `python tools/base2new.py RUN ...`."""

if __name__ == "__main__":
    from _start import run

    run("measures.results")
