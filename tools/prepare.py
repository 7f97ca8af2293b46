"""Download, verify and arrange datasets and backbones: see `python tools/prepare.py --help`, `...
backbone --help`.
"""

if __name__ == "__main__":
    from mpl import main

    main("prepare")
