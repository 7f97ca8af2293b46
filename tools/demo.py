"""Prompt learning on a laptop (`make demo`): see `python tools/demo.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("demo")
