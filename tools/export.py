"""Write learned prompts to a folder to keep and pass on: see `python tools/export.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("export")
