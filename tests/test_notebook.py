"""The notebook runs from its first cell to its last."""

import sys

import pytest
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
