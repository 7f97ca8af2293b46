import sys

# `python -m tools.study` finds _start.py; `python tools/study.py` does without
sys.path.append(__path__[0])
