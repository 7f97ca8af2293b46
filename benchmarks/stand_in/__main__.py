"""Tests, or a program, as on a machine with a GPU.

python -m benchmarks.stand_in tests/test_golden.py -k mpl    # options of pytest
python -m benchmarks.stand_in benchmarks/gpu_check.py --narrow
"""

import runpy
import sys
from pathlib import Path

from benchmarks.stand_in import stand_in  # before torch

# isort: split

import pytest

program = Path(sys.argv[1]) if sys.argv[1:] else Path()
with stand_in():
    if program.suffix == ".py" and not program.name.startswith("test_"):
        sys.argv = sys.argv[1:]
        runpy.run_path(str(program), run_name="__main__")
    else:
        sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "--tb=line", *sys.argv[1:]]))
