"""The notebook runs from its first cell to its last, and the tour of the code names what a run
calls.
"""

import os
import re
import sys

import pytest
from drawn import arguments
from marks import to_json

from common.start import ROOT

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "docs/tour.ipynb"


@pytest.mark.thorough
def test_notebook_runs_and_prints_what_it_promises(tmp_path, monkeypatch):
    needed = ("nbformat", "nbclient", "ipykernel")
    nbformat, nbclient, _ = (
        pytest.importorskip(name, reason=f"{name}: requirements-dev.txt") for name in needed
    )
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    kernels = tmp_path / "JUPYTER_DATA_DIR/kernels/python3"  # that of this interpreter
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    to_json(
        kernels / "kernel.json", {"argv": argv, "display_name": "Python 3", "language": "python"}
    )
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    printed = "".join(
        output.text
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    )
    for promised in (
        "% of 320 test images",
        "layer 11: patches",
        "Written: prompts.safetensors",
        "new classes",
    ):
        assert promised in printed, printed
    assert (
        sum(
            "image/png" in output.get("data", {})
            for cell in book.cells
            for output in cell.get("outputs", ())
        )
        == 3
    )
    # It writes there, and nowhere else
    assert [folder.name for folder in (tmp_path / "TMPDIR").glob("tour-*/*")]


def test_tour_of_the_code_names_the_functions_of_a_run_in_the_order_of_their_first_calls(
    launch, eurosat, tiny, tmp_path
):
    text = (ROOT / "docs/tour_of_the_code.md").read_text()
    tour = re.findall(r"^- `([\w/]+\.py)` `([\w.]+)`: ", text, re.MULTILINE)
    assert len(text.splitlines()) <= 70 and len(tour) > 30
    assert len(set(tour)) == len(tour) == text.count("\n- ")
    called = {}

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/"):
            called.setdefault(
                (os.path.relpath(frame.f_code.co_filename, ROOT), frame.f_code.co_name)
            )

    sys.setprofile(note)
    try:
        launch.works(*arguments(eurosat, tiny, tmp_path / "run"))
    finally:
        sys.setprofile(None)
    order = {function: number for number, function in enumerate(called)}
    places = [order.get((file, name.rpartition(".")[2]), name) for file, name in tour]
    assert [place for place in places if isinstance(place, str)] == []
    later = [
        after for one, two, after in zip(places, places[1:], tour[1:], strict=False) if two < one
    ]
    assert later == []
