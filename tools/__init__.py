import sys

# `python -m tools.study` finds mpl.py; `python tools/study.py` does without
sys.path.append(__path__[0])
