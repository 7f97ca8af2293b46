import json
import re
from contextlib import contextmanager
from functools import cache

import pytest

from common.errors import UsageError


@contextmanager
def one_line(*words, error=UsageError):
    """The block raises this error; its message is one line with these words."""
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert (
        "\n" not in message and [word for word in map(str, words) if word not in message] == []
    ), message


def parquet_library():
    """pyarrow with its module of Parquet files; without it, the test is skipped."""
    reason = "Parquet needs pyarrow (requirements-parquet.txt)"
    pytest.importorskip("pyarrow.parquet", reason=reason)
    return pytest.importorskip("pyarrow", reason=reason)


def of_json(file):
    """The content of a JSON file."""
    return json.loads(file.read_text())


def times(folder):
    """When each file and folder below was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def to_json(file, content):
    """Write a JSON file."""
    file.write_text(json.dumps(content))


def thorough_but(quick, values):
    """Parameters `values`; `make test` runs the quick ones, `make test-all` all of them."""
    assert all(value in values for value in quick), f"{quick} are not all among {values}"
    return [
        pytest.param(value, marks=() if value in quick else pytest.mark.thorough)
        for value in values
    ]


def golden_files(folder, chosen):
    """The contents of those JSON files of a folder that are chosen by them, by their names without
    `.json`.
    """
    found = all_golden_files(folder)
    if not found:
        raise pytest.UsageError(f"no JSON files in {folder}")
    return {stem: content for stem, content in found.items() if chosen(content)}


@cache
def all_golden_files(folder):
    """Read once for all modules of tests, which do not change them."""
    return {file.stem: of_json(file) for file in sorted(folder.glob("*.json"))}


# Golden files of other settings, or of a method that has another file; `make test-all` runs them.
SECOND = {
    "atprompt_cocoop",
    "atprompt_coop_pets",
    "clap_features",
    "clip_adapter_features",
    "clip_svd",
    "clip_svd_base2new",
    "clipfit",
    "cliplora_vision_up_qkvo",
    "coop_end16",
    "coop_init_words",
    "coprompt_w8_ctx4",
    "ctpt_drawn_steps2",
    "cupl_repeats",
    "dept_coop_middle_w04",
    "dept_kgcoop",
    "dept_maple",
    "dpc_coop",
    "dpc_coop_top2",
    "gda",
    "hicropl_d3_k1_ctx5",
    "hicropl_gradient",
    "kgcoop_random_pets",
    "locoop_csc_middle",
    "locoop_no_region",
    "lp_plus_plus_features",
    "maple_d1",
    "maple_d4_ctx5",
    "mma_scale01_middle",
    "mma_start0",
    "mmapp",
    "mmapp_templates",
    "mmrl_dim128_three",
    "mmrlpp_beta02_three",
    "mpl_add1_rm1_d4_is_deep",
    "mpl_add2_rm1_d4",
    "mpl_add3_rm0_d3",
    "mta_lambdas",
    "nlprompt_middle_reg005",
    "nlprompt_reg0001",
    "otpt_drawn_steps2",
    "peft_cliplora_qkvo",
    "prograd_init_food",
    "proker",
    "prolip_features",
    "rla",
    "skip_tuning",
    "skip_tuning_all_classes",
    "ss_text",
    "task_res_features",
    "tcp_pets_adam",
    "tda",
    "timo",
    "timo_features",
    "timo_features_flowers",
    "timo_s_features",
    "timo_s_features_flowers",
    "tip_adapter_f_features",
    "tip_adapter_features",
    "tpt_drawn_steps3",
    "two_stage",
    "two_stage_bitfit",
    "upt_shallow_end",
    "waffle",
    "wise_ft_both_towers",
    "zero",
    "zs_lp_features",
}


def golden(metafunc, name, chosen, quick=("",)):
    """Parametrize a test that asks for `name` by those files of `--golden` that are chosen by their
    contents. Those whose names do not begin with one of `quick` are slow.
    """
    if name in metafunc.fixturenames:
        files = golden_files(metafunc.config.getoption("golden"), chosen)
        cases = []
        for stem, content in files.items():
            own = [pytest.mark.golden]  # which `-k golden` selects
            if stem in SECOND:
                own.append(pytest.mark.thorough)
            elif not stem.startswith(quick):
                own.append(pytest.mark.slow)
            cases.append(pytest.param(content, id=stem, marks=own))
        metafunc.parametrize(name, cases)


def golden_cases(metafunc, *keys, chosen=lambda case: True):
    """Parametrize a test that asks for one of these keys by its cases that are `chosen`: files of
    `--golden` have a list of them.
    """
    for key in keys:
        if key in metafunc.fixturenames:
            files = golden_files(
                metafunc.config.getoption("golden"), lambda content, key=key: key in content
            )
            cases = [case for content in files.values() for case in content[key] if chosen(case)]
            names = [
                case.get("what", f"seed {case.get('seed', case.get('alpha'))}") for case in cases
            ]
            metafunc.parametrize(
                key, [pytest.param(case, marks=pytest.mark.golden) for case in cases], ids=names
            )


def case_of(figures):
    """The `case` of a golden file: a method with its settings; {} for other files."""
    return figures.get("case", {}) if isinstance(figures, dict) else {}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, the first of them the column names."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]
    return [
        [[cell.strip() for cell in row] for row in block if "---" not in row[0]] for block in rows
    ]


def files_of(page):
    """The code blocks of a page that start with a comment naming their file."""
    found = re.findall(r"```(?:python|yaml)\n# ([\w./]+)\n(.*?)```", page.read_text(), re.DOTALL)
    return dict(found)
