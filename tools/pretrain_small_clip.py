"""Pre-train the small CLIP on synthetic images: see `python tools/pretrain_small_clip.py
--help`.
"""

if __name__ == "__main__":
    from _start import run

    run("benchmarks.pretrain_small_clip", "from the start")
