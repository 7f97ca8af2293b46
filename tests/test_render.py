"""The LaTeX of a study's tables, and the sentences of its first page."""

import re
from html import unescape

import pytest
from finished import different, finish, summarise, tables_of

from studies import command as study_command
from studies.study_file import load

pytestmark = pytest.mark.slow


# The page of a study: every table with its marks, and names and errors as text.


HOSTILE = "<img src=x onerror=alert(1)> 'it' & \"that\"<pre><script>alert(1)<script>"


def texts(html: str, tag: str) -> list[str]:
    """The text of each element of this kind."""
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", html, re.DOTALL)
    return [unescape(re.sub("<[^>]+>", "", inner)) for inner in found]


def test_page_has_every_table_with_its_marks_and_escapes_names_and_errors(
    study_file, tmp_path, monkeypatch
):
    # They take most of the time
    monkeypatch.setattr("studies.report.pictures", lambda summary: [])
    mpl = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = study_file(
        "out", protocols=["base2new"], trainers={"CoOp": "small", HOSTILE: mpl}, seeds=[1, 2, 3]
    )
    study = load(file)
    *finished, failed = study.runs()
    for run in finished:
        finish(run, different(run)[0], device=HOSTILE, versions={HOSTILE: HOSTILE})
    failed.folder.mkdir(parents=True)
    (failed.folder / "error.txt").write_text(HOSTILE)
    study_command.main(["report", str(file)])
    html = (tmp_path / "out/studies/out/report.html").read_text().replace("<wbr>", "")
    tables = tables_of(summarise(study)).values()
    assert len(tables) > 3
    pages = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    marks = "span", "strong", "u"
    for table, shown in zip(tables, pages, strict=False):
        found = re.findall(r"<(span|strong|u)>(.*?)</\1>", shown, re.DOTALL)
        cells = [("span", name) for name in table.header]
        cells += [(marks[cell.rank], cell.text) for row in table.rows for cell in row]
        assert [(mark, unescape(text)) for mark, text in found] == cells
        assert table.title in texts(html, "h3") and table.note in texts(html, "p")
    (rates,) = re.findall(r"<tr><th[^>]*><span>OPTIM\.LR</span>.*?</tr>", html)
    assert re.findall("<span>(.*?)</span>", rates)[1:] == ["0.5", "0.1"]
    assert texts(html, "p").count(HOSTILE) == 1  # the error
    folder, start, _ = texts(html, "code")
    assert folder == str(failed.folder) and start.startswith("python train.py --skip-finished ")
    assert not re.search(r"<(script|iframe|link)|<[^>]* on\w+=", html)
