"""Start a script of scripts/: `python tools/script.py scripts/mpl/base2new_train.sh eurosat 1`."""

if __name__ == "__main__":
    from _start import run

    run("studies.scripts.command")
