"""Download, verify and arrange datasets and backbones: see `python tools/prepare.py --help`, `...
backbone --help`.
"""

if __name__ == "__main__":
    import sys

    from _start import run

    run(
        "clip.fetch" if sys.argv[1:2] == ["backbone"] else "datasets.preparing.command",
        "where it stopped",
    )
