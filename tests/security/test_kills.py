"""`make kill`: a few of its kills."""

import pytest
from kills.__main__ import kill_at_random, prepare
from serving import serving


@pytest.mark.slow
@pytest.mark.thorough
# Of a study, tests/studies/test_execute.py kills a part
@pytest.mark.parametrize("name", ["CoOp", "prepare", "export"])
def test_interrupted_commands_have_the_same_results(name, tmp_path, random_seed):
    cuts = {"KILL": 2, "TERM": 1, "FULL": 1}
    with serving({}) as server:
        prepare(tmp_path / "shared", server)
        chains, wrong = kill_at_random(name, cuts, tmp_path / name, server, random_seed)
    assert wrong == [] and 0 < chains <= 4
