"""The examples of docs/add_a_method.md work as they are written, in a folder outside the clone."""

import re

import pytest
from test_method_file import new_process

from common.start import ROOT
from trainers import methods
from trainers.base.checks import assert_method_works
from trainers.base.method_file import load_method_file

PAGE = (ROOT / "docs/add_a_method.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (mine/[\w./]+)\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = {  # file -> the method that it registers, and settings
    "growing": ("Growing", {"DEPTH": 2}),
    "bottleneck": ("Bottleneck", {}),
    "class_means": ("ClassMeans", {}),
    "mean_of_views": ("MeanOfViews", {"VIEWS": 4}),
    "near_teacher": ("NearTeacher", {"W": 2}),
    "smooth": ("Smooth+CoOp", {"SMOOTHING": 0.2, "N_CTX": 2}),
}


def test_every_block_of_the_page_is_an_example_that_runs_here_or_in_test_docs():
    assert sorted(FILES) == sorted(["mine/Growing/small.yaml", *(f"mine/{name}.py" for name in EXAMPLES)])
    assert PAGE.count("```") == 2 * (len(FILES) + 1) and len(PAGE.splitlines()) <= 250  # the other block: commands


@pytest.mark.parametrize("file", EXAMPLES)
def test_example_works(file, tmp_path):
    name, settings = EXAMPLES[file]
    path = tmp_path / f"{file}.py"
    path.write_text(FILES[f"mine/{file}.py"])
    with new_process():
        load_method_file(path)
        assert_method_works(name, **settings)
        assert methods()[name].plugin_file == str(path)
