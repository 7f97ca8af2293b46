"""`make kill`: a few of its kills."""

import pytest
from kills.__main__ import kill_at_random
from kills.subjects import subjects
from serving import serving


@pytest.mark.slow
@pytest.mark.thorough
# Of a study, tests/test_cluster.py kills a part
@pytest.mark.parametrize("name", ["CoOp", "prepare", "export"])
def test_commands_that_are_cut_off_have_the_same_results(name, tmp_path, random_seed):
    (tmp_path / "shared").mkdir()
    with serving({}) as server:
        (subject,) = (one for one in subjects(tmp_path / "shared", server) if one.name == name)
        tally = kill_at_random(subject, {"KILL": 2, "TERM": 1, "FULL": 1}, tmp_path, random_seed)
    assert tally.wrong == [] and tally.cuts.total() == 4
