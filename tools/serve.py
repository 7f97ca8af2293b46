"""Try models on a page in the browser: see `python tools/serve.py --help`."""

if __name__ == "__main__":
    from mpl import main

    main("serve")
