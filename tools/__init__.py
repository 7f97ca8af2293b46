import sys

sys.path.append(
    __path__[0]
)  # `python -m tools.study` finds _start.py; `python tools/study.py` does without
