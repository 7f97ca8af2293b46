"""Tests as on a machine with a GPU: `python -m benchmarks.stand_in tests/test_golden.py -k mpl`, options of pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from benchmarks.stand_in import stand_in  # noqa: E402  - before torch

# isort: split

import pytest  # noqa: E402

with stand_in():
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "--tb=line", *sys.argv[1:]]))
