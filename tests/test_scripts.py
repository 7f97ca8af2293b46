"""Every script calls train.py with the right arguments, and these runs finish.

A shell script replaces Python: it records its arguments and writes a result. The tests compare the recorded
arguments, then run train.py with them in this process, to save some sixty starts of Python. One test uses the real
Python.
"""

import itertools
import re
import shutil
import sys
from pathlib import Path

import pytest
from drawn import run_for_real

from experiments.studies.reproduce import read_arguments as reproduce_parser
from tools.forward_scripts import forwards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CFG = {  # by folder under scripts/: the trainer and its settings base-to-new, cross-dataset and few-shot
    "coop": ("CoOp", "vit_b16_ep50_ctxv1", "vit_b16_ep50_ctxv1", "vit_b16"),
    "cocoop": ("CoCoOp", *["vit_b16_c4_ep10_batch1_ctxv1"] * 3),
    "vpt": ("VPT", *["vit_b16_c2_ep5_batch4_4"] * 3),
    "ivlp": ("IVLP", *["vit_b16_c2_ep5_batch4_2+2ctx"] * 3),
    "maple": ("MaPLe", *[f"vit_b16_c2_ep5_batch4_2ctx{kind}" for kind in ("", "_cross_datasets", "")]),
    "promptsrc": (
        "PromptSRC",
        "vit_b16_c2_ep20_batch4_4+4ctx",
        "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
        "vit_b16_c2_ep50_batch4_4+4ctx_few_shot",
    ),
    "mpl": ("MPL", *[f"vit_b4_c1_add2_rm1{kind}" for kind in ("", "_cross_datasets", "")]),
}
KINDS = ("base2new_train", "base2new_test", "xd_train", "xd_test", "few_shot")
OWN = {"coop/main.sh", "coop/eval.sh", "zsclip/zeroshot.sh"}  # these take other arguments
GENERIC = {f"{kind}.sh" for kind in KINDS}  # these take METHOD first
FORWARDS = forwards()  # published names of scripts
REPRODUCE = {name for name in FORWARDS if "/reproduce" in name}
SCRIPTS = {f"{method}/{kind}.sh" for method in CFG for kind in KINDS} | OWN | {"lpclip/few_shot.sh"}
SMALL = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def asks(script, eurosat, deep, tmp_path):
    """`asks(name, arguments, variables, *calls)`: a script makes these calls, (folder, arguments), and a report.

    A call without arguments is a run that is only reported. Returns the command lines of train.py.
    """

    def asks(name, arguments, variables, *calls):
        ended, asked = script(name, *arguments, **variables)
        assert (ended.returncode, ended.stderr) == (0, "")
        common = ["train.py", "--skip-finished", "--root", str(eurosat)]
        backbone = ["--backbone", str(deep)]
        runs = [(str(tmp_path / "out" / folder), call) for folder, call in calls]
        expected = [[*common, "--output-dir", folder, *backbone, *call] for folder, call in runs if call]
        assert asked == [*expected, ["-m", "tools.base2new", *(folder for folder, _ in runs)]]
        return [call[1:] for call in asked[:-1]]

    return asks


def method_arguments(trainer, cfg, dataset="eurosat"):
    files = f"configs/datasets/{dataset}.yaml", f"configs/trainers/{trainer}/{cfg}.yaml"
    return ["--trainer", trainer, "--dataset-config-file", files[0], "--config-file", files[1]]


def test_every_script_is_tested():
    files = {str(file.relative_to(ROOT / "scripts")) for file in (ROOT / "scripts").rglob("*.sh")}
    assert files == SCRIPTS | GENERIC | FORWARDS.keys() | {"common.sh", "reproduce.sh"}


def test_published_names_forward_as_the_table_says():
    assert {name: (ROOT / "scripts" / name).read_text() for name in FORWARDS} == FORWARDS


@pytest.mark.parametrize("name", sorted(FORWARDS.keys() - REPRODUCE))
def test_published_name_asks_for_the_same_as_this_projects(name, script):
    folder, kind = name.split("/")
    own = {"independent-vlp": "ivlp", "language-prompting": "ivlp"}.get(folder, folder)
    language = {"CFG": "vit_b16_c2_ep5_batch4_4ctx_language_only"} if folder == "language-prompting" else {}
    calls = []
    for path, variables in ((name, {}), (f"{own}/{kind.rpartition('_')[0]}.sh", language)):
        ended, asked = script(path, "eurosat", 3, 2, "OPTIM.LR", 1, **variables)
        assert ended.returncode == 0, ended.stderr
        calls.append(asked)
    assert calls[0] == calls[1] and "OPTIM.LR" in calls[0][0]


@pytest.mark.parametrize("name", sorted(REPRODUCE))
def test_published_checkpoints_are_tested_by_their_published_command(name, script, eurosat, deep, tmp_path):
    ended, (call,) = script(name, "eurosat", 2, "weights", "--workers", 3)
    assert ended.returncode == 0, ended.stderr
    method = {"maple": "MaPLe", "vpt": "VPT", "promptsrc": "PromptSRC"}.get(name.split("/")[0], "IVLP")
    protocol = "few_shot" if "few_shot" in name else "cross_dataset" if name.endswith("xd.sh") else "base2new"
    chosen = ["--seeds", "1", "2", "3", "--shots", "2"] if protocol == "few_shot" else ["--seeds", "2"]
    cfg = ["--cfg", "vit_b16_c2_ep5_batch4_4ctx_language_only"] if "language" in name else []
    assert call == [
        *("tools/reproduce.py", method, "--checkpoints", str(tmp_path / "weights"), "--protocol", protocol),
        *("--datasets", "eurosat", *chosen, "--root", str(eurosat), "--output", str(tmp_path / "out"), *cfg),
        *("--backbone", str(deep), "--workers", "3"),
    ]
    parser = reproduce_parser(call[1:])
    assert (parser.method, parser.seeds[0], parser.workers) == (method, 1 if protocol == "few_shot" else 2, 3)


def test_several_seeds_need_one_call_of_train_and_a_report_each(script, tmp_path):
    out, run = tmp_path / "out/base2new", "eurosat/shots_16/CoOp/vit_b16_ep50_ctxv1"
    ended, (call, *reports) = script("base2new_test.sh", "coop", "eurosat", "1 2", 5)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert call[call.index("--seed") + 1] == "1 2"
    assert call[call.index("--output-dir") + 1] == f"{out}/test_new/{run}/seed{{seed}}"
    assert call[call.index("--model-dir") + 1] == f"{out}/train_base/{run}/seed{{seed}}"
    folders = [[f"{out}/{part}/{run}/seed{seed}" for part in ("train_base", "test_new")] for seed in (1, 2)]
    assert reports == [["-m", "tools.base2new", *pair] for pair in folders]


@pytest.mark.parametrize("method", CFG)
def test_base_to_new_generalisation(method, asks, launch, monkeypatch):
    trainer, cfg = CFG[method][:2]
    given, shots = ["eurosat", 3, 1, *SMALL], ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES"]
    run = f"eurosat/shots_2/{trainer}/{cfg}/seed3"
    base, new = f"base2new/train_base/{run}", f"base2new/test_new/{run}"
    shared = ["--seed", "3", *method_arguments(trainer, cfg)]

    training = [*shared, *shots, "base", "OPTIM.MAX_EPOCH", "1", *SMALL]
    calls = asks(f"{method}/base2new_train.sh", given, {"SHOTS": 2}, (base, training))
    (trained,) = run_for_real(launch, calls, monkeypatch)

    folder = calls[0][calls[0].index("--output-dir") + 1]
    testing = [*shared, "--eval-only", "--model-dir", folder, "--load-epoch", "1", *shots, "new", *SMALL]
    calls = asks(f"{method}/base2new_test.sh", given, {"SHOTS": 2}, (base, None), (new, testing))
    (tested,) = run_for_real(launch, calls, monkeypatch)
    assert [(run["trainer"], run["classes"], run["n_test"], run["epochs"]) for run in (trained, tested)] == [
        (trainer, "base", 12, 1),
        (trainer, "new", 12, 1),
    ]


@pytest.mark.parametrize("method", CFG)
def test_cross_dataset_transfer(method, asks, launch, monkeypatch):
    trainer, _, cfg = CFG[method][:3]
    given, variables = ["eurosat", 1, 1, *SMALL], {"SHOTS": 1, "SOURCE": "eurosat"}
    run = f"{trainer}/{cfg}_1shots/seed1"
    shared, shots = ["--seed", "1", *method_arguments(trainer, cfg)], ["DATASET.NUM_SHOTS", "1"]

    source = f"crossdataset/eurosat/{run}"
    training = (source, [*shared, *shots, "OPTIM.MAX_EPOCH", "1", *SMALL])
    calls = asks(f"{method}/xd_train.sh", given, variables, training)
    (trained,) = run_for_real(launch, calls, monkeypatch)

    folder = calls[0][calls[0].index("--output-dir") + 1]
    testing = [*shared, "--eval-only", "--model-dir", folder, "--load-epoch", "1", *shots, *SMALL]
    calls = asks(f"{method}/xd_test.sh", given, variables, (f"crossdataset/evaluation/eurosat/{run}", testing))
    (tested,) = run_for_real(launch, calls, monkeypatch)
    assert [(run["classes"], run["n_test"]) for run in (trained, tested)] == [("all", 24)] * 2
    assert trained["accuracy"] == tested["accuracy"]  # the same prompts on the same images


@pytest.mark.parametrize("method", CFG)
def test_few_shots(method, asks, launch, monkeypatch):
    trainer, *_, cfg = CFG[method]
    # EuroSAT is not among the six datasets for which PromptSRC's YAML has the average.
    average = ["TRAINER.PROMPTSRC.GPA_MEAN", "45", "TRAINER.PROMPTSRC.GPA_STD", "5"] * (method == "promptsrc")
    shared = ["--seed", "1", *method_arguments(trainer, cfg)]

    def runs(numbers):
        options = ["OPTIM.MAX_EPOCH", "1", *average, *SMALL]
        return [
            (shots, f"eurosat/{trainer}/{cfg}_{shots}shots/seed1", [*shared, "DATASET.NUM_SHOTS", str(shots), *options])
            for shots in numbers
        ]

    given = ["eurosat", 1, 1, *SMALL]
    calls = asks(f"{method}/few_shot.sh", given, {"SHOTS": "1 2"}, *(run[1:] for run in runs((1, 2))))
    assert [run["shots"] for run in run_for_real(launch, calls, monkeypatch)] == [1, 2]
    asks(f"{method}/few_shot.sh", given, {}, *(run[1:] for run in runs((1, 2, 4, 8, 16))))


def test_coops_own_scripts(asks, launch, monkeypatch):
    main = ["eurosat", "vit_b16_ep50", "middle", 4, 1, "True"]
    setting = ["TRAINER.COOP.N_CTX", "4", "TRAINER.COOP.CSC", "True", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"]
    shared, options = method_arguments("CoOp", "vit_b16_ep50"), ["OPTIM.MAX_EPOCH", "1", *SMALL]
    name = "CoOp/vit_b16_ep50_1shots/nctx4_cscTrue_ctpmiddle"
    training = [
        (f"eurosat/{name}/seed{seed}", ["--seed", str(seed), *shared, "DATASET.NUM_SHOTS", "1", *setting, *options])
        for seed in (1, 2, 3)
    ]
    calls = asks("coop/main.sh", [*main, *options], {}, *training)
    trained = run_for_real(launch, calls, monkeypatch)
    assert [run["seed"] for run in trained] == [1, 2, 3]

    testing = []
    for seed, call in zip((1, 2, 3), calls, strict=True):
        model = ["--eval-only", "--model-dir", call[call.index("--output-dir") + 1]]
        folder = f"evaluation/{name}/eurosat/seed{seed}"
        testing.append((folder, ["--seed", str(seed), *shared, *model, "DATASET.NUM_SHOTS", "1", *setting, *SMALL]))
    variables = {"SHOTS": 1, "NCTX": 4, "CSC": "True", "CTP": "middle", "SOURCE": "eurosat"}
    calls = asks("coop/eval.sh", ["eurosat", "vit_b16_ep50", *SMALL], variables, *testing)
    tested = run_for_real(launch, calls, monkeypatch)
    assert [run["accuracy"] for run in tested] == [run["accuracy"] for run in trained]


def test_zero_shot(asks, launch, monkeypatch):
    shared = method_arguments("ZeroshotCLIP", "vit_b16")[:2]
    for cfg, classes, folder in (
        ([], [], "vit_b16/eurosat"),
        (["vit_b32"], ["DATASET.SUBSAMPLE_CLASSES", "new"], "vit_b32/eurosat/new"),
    ):
        files = method_arguments("CoOp", *(cfg or ["vit_b16"]))[2:]
        expected = (f"ZeroshotCLIP/{folder}", [*shared, *files, "--eval-only", *classes, *SMALL])
        calls = asks("zsclip/zeroshot.sh", ["eurosat", *cfg, *classes, *SMALL], {}, expected)
        assert run_for_real(launch, calls, monkeypatch)[0]["n_test"] == (12 if classes else 24)


@pytest.fixture
def clone(tmp_path):
    """A copy of the scripts and configurations that a test may write to."""
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / "clone" / folder)
    return tmp_path / "clone"


@pytest.mark.parametrize(
    "variables",
    [{}, *(pytest.param({key: "small"}, marks=pytest.mark.thorough) for key in ("BACKBONE", "CFG"))],
    ids=["default", "backbone", "cfg"],
)
@pytest.mark.parametrize("method", CFG)
def test_generic_and_method_scripts_make_the_same_calls(method, variables, script):
    names = {"small": "small_cross_datasets"} if "BACKBONE" in variables else {}
    for kind in KINDS:  # each training script before its test script
        for arguments in (["eurosat", 1], ["eurosat", 2, 5, "OPTIM.LR", 0.1]):
            given = {"SHOTS": 2, "SOURCE": "eurosat"} | variables
            for name in (CFG[method][0], method):  # `method` is in lower case
                generic = script(f"{kind}.sh", name, *arguments, **given)
                own = script(f"{method}/{kind}.sh", *arguments, **given)
                assert (generic[0].returncode, generic[0].stderr) == (own[0].returncode, own[0].stderr) == (0, "")
                assert generic[1] == own[1] and generic[0].stdout == own[0].stdout
            if variables:
                expected = names.get("small", "small") if kind.startswith("xd") else "small"
                assert config_files(own[1]) == [f"configs/trainers/{CFG[method][0]}/{expected}.yaml"]


def config_files(calls):
    return [call[call.index("--config-file") + 1] for call in calls if "--config-file" in call]


@pytest.fixture
def chosen(script, clone):
    """`chosen(defaults, *names)` gives a new method these YAML files and returns `chosen(kind, **variables)`.

    The latter runs a generic script in the clone and returns the name of the YAML, or the line on stderr.
    """

    def add(defaults, *names):
        folder = clone / "configs/trainers/Growing"
        folder.mkdir()
        for name in names:
            (folder / f"{name}.yaml").write_text("_BASE_: ../common.yaml\n")
        if defaults is not None:
            (folder / "defaults").write_text(defaults)

        def chosen(kind, name="growing", **variables):
            ended, calls = script(f"{kind}.sh", name, "eurosat", 1, root=clone, **({"SHOTS": 1} | variables))
            if ended.returncode == 0:
                (file,) = config_files(calls)
                assert calls[0][calls[0].index("--trainer") + 1] == "Growing"
                assert f"/{Path(file).stem}" in calls[0][calls[0].index("--output-dir") + 1]
                return Path(file).stem
            assert (ended.returncode, ended.stdout, calls) == (2, "", [])
            (line,) = ended.stderr.splitlines()
            return line

        return chosen

    return add


TRAINING = ("base2new_train", "few_shot", "xd_train")


def test_new_method_with_one_yaml_needs_no_script(chosen):
    chosen = chosen(None, "vit_b16")
    variables = {"SOURCE": "eurosat"}
    assert [chosen(kind, **variables) for kind in KINDS] == ["vit_b16"] * 5
    assert [chosen(kind, BACKBONE="small", **variables) for kind in KINDS] == ["vit_b16"] * 5
    assert chosen("few_shot", name="GROWING") == chosen("few_shot", name="Growing") == "vit_b16"


def test_defaults_file_names_the_yaml_of_each_protocol(chosen):
    defaults = "# a comment\n\n  base2new\ta # b\nfew_shot b\n#few_shot c\ncross_dataset   c"  # no newline at the end
    chosen = chosen(defaults, "a", "b", "c", "small")
    assert [chosen(kind) for kind in TRAINING] == ["a", "b", "c"]
    assert [chosen(kind, BACKBONE="small") for kind in TRAINING] == ["small"] * 3
    assert [chosen(kind, BACKBONE="small", CFG="b") for kind in TRAINING] == ["b"] * 3


def test_method_with_small_yamls_only(chosen):
    chosen = chosen(None, "small", "small_cross_datasets")
    for backbone in ("RN50", "small"):
        assert [chosen(kind, BACKBONE=backbone) for kind in TRAINING] == ["small", "small", "small_cross_datasets"]


@pytest.mark.parametrize("defaults", [None, "few_shot a\n", "few_shot a\nbase2new # none\n"])
def test_several_yamls_without_default_need_cfg(defaults, chosen):
    chosen = chosen(defaults, "a", "b")
    expected = "error: Growing has several YAML files and no default for base2new: set CFG to one of: a b"
    assert chosen("base2new_train") == expected
    assert chosen("base2new_train", CFG="b") == "b"
    assert chosen("base2new_train", CFG="d").startswith("error: no configs/trainers/Growing/d.yaml: CFG can be a b")


def test_default_without_a_file(chosen):
    line = chosen("few_shot c\n", "a", "b")("few_shot")
    assert line == "error: no configs/trainers/Growing/c.yaml: CFG can be a b"


def test_exact_name_of_a_method_wins_over_another_case(chosen, clone):
    chosen = chosen(None, "vit_b16")
    for name in ("GROWING", "growing"):
        if not (folder := clone / "configs/trainers" / name).exists():  # a file system may ignore case
            folder.mkdir()
            (folder / "other.yaml").touch()
    assert chosen("few_shot", name="Growing") == "vit_b16"


def test_promptsrcs_average_is_the_users_then_the_datasets(script, clone, tmp_path):
    datasets, mean = clone / "configs/datasets", "TRAINER.PROMPTSRC.GPA_MEAN"
    shutil.copy(datasets / "eurosat.yaml", datasets / "ucf101.yaml")  # one of the six that the YAML is made for
    for number, (arguments, means) in enumerate(
        [
            (["ucf101", 1], []),
            (["ucf101", 1, mean, 20], ["20"]),
            (["eurosat", 1], ["45"]),
            (["eurosat", 1, mean, 20], ["45", "20"]),  # the last one counts
            (["eurosat", 1, 50, mean, 20], ["45", "20"]),
        ]
    ):
        out = tmp_path / f"out{number}"
        ended, asked = script("promptsrc/few_shot.sh", *arguments, root=clone, SHOTS=1, OUT=out)
        assert ended.returncode == 0
        assert [value for key, value in itertools.pairwise(asked[0]) if key == mean] == means


def test_defaults_of_environment_variables(script, clone, tmp_path):
    stub = clone / ".venv/bin/python"  # as `make setup` leaves one
    stub.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "python", stub)
    bare = dict.fromkeys(["DATA", "OUT", "BACKBONE", "PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX"], "")
    ended, asked = script("vpt/base2new_train.sh", "eurosat", 2, root=clone, **bare)
    assert ended.returncode == 0
    folder = "output/base2new/train_base/eurosat/shots_16/VPT/vit_b16_c2_ep5_batch4_4/seed2"
    arguments = ["--seed", "2", *method_arguments("VPT", "vit_b16_c2_ep5_batch4_4")]
    options = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"]
    assert asked[0] == ["train.py", "--skip-finished", "--root", "data", "--output-dir", folder, *arguments, *options]
    assert (clone / folder).is_dir()


@pytest.mark.slow
def test_cross_dataset_scripts_with_the_real_python(script, python):
    variables = {"SHOTS": 1, "SOURCE": "eurosat", "PYTHON": python, "OMP_NUM_THREADS": 1}
    for name in ("mpl/xd_train.sh", "mpl/xd_test.sh"):
        ended, _ = script(name, "eurosat", 1, 1, *SMALL, **variables)
        assert ended.returncode == 0, ended.stderr
        result = re.fullmatch(r"MPL on EuroSAT 1 shots seed 1: [\d.]+% on 24 test images of all classes", last(ended))
        assert result, last(ended)
    assert "Source and target are both eurosat: a rehearsal, no cross-dataset result" in ended.stdout
    again, _ = script("mpl/xd_test.sh", "eurosat", 1, 1, *SMALL, **variables)
    assert "Already done (delete" in again.stdout and last(again) == result[0]


def last(ended):
    return ended.stdout.splitlines()[-1]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", sorted(SCRIPTS | GENERIC | FORWARDS.keys() | {"reproduce.sh"}))
def test_usage(name, script):
    generic = name in GENERIC | {"reproduce.sh"}
    first, too_few = ("METHOD", ["MPL", "eurosat"]) if generic else ("DATASET", [])
    for arguments in ([], too_few):
        ended, asked = script(name, *arguments)
        assert (ended.returncode, ended.stdout, asked) == (2, "", [])
        usage = ended.stderr.splitlines()
        assert usage[0].startswith(f"{Path(name).name} {first} ") and len(usage) >= 3
        assert not any(line.startswith(("#", "source", "TRAINER")) for line in usage)


@pytest.mark.parametrize("name", sorted(GENERIC))
def test_unknown_method(name, script, tmp_path):
    for method in ("MPLL", "", "..", "common", "MPL/", "*"):
        ended, asked = script(name, method, "eurosat", 1)
        assert (ended.returncode, ended.stdout, asked) == (2, "", [])
        known = {file.parent.name for file in ROOT.glob("configs/trainers/*/*.yaml")}
        expected = f"configs/trainers/{method}: METHOD can be {' '.join(known)}"
        assert sorted(ended.stderr.split()) == sorted(f"error: no YAML file in {expected}".split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(GENERIC))
def test_zero_shot_clip_has_its_own_script(name, script):
    for method in ("ZeroshotCLIP", "zeroshotclip"):
        ended, asked = script(name, method, "eurosat", 1)
        assert (ended.returncode, ended.stdout, asked) == (2, "", [])
        assert ended.stderr == "error: ZeroshotCLIP learns no prompts: use scripts/zsclip/zeroshot.sh DATASET\n"


@pytest.mark.parametrize("name", sorted(SCRIPTS | GENERIC))
def test_unknown_dataset_or_cfg(name, script, tmp_path):
    own = name in OWN  # they take CFG as an argument, the others as a variable
    cases = [("eurosatt", "vit_b16", "configs/datasets/eurosatt.yaml: DATASET can be caltech101 dtd eurosat ")]
    cases += [("eurosat", "vit_b61", "/vit_b61.yaml: CFG can be ")]
    for dataset, cfg, words in cases:
        arguments = [dataset, cfg, "end", 16, 1, "False"] if own else ["mpl"] * (name in GENERIC) + [dataset, 1]
        ended, asked = script(name, *arguments, **({} if own else {"CFG": cfg}))
        assert (ended.returncode, ended.stdout, asked) == (2, "", [])
        (line,) = ended.stderr.splitlines()
        assert line.startswith("error: no configs/") and words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mpl/base2new_test.sh", "mpl/xd_test.sh", "coop/eval.sh"])
def test_error_for_untrained_prompts_names_the_nearest_folder(name, script, tmp_path):
    trained = {
        "mpl/base2new_test.sh": "base2new/train_base/eurosat/shots_16/MPL/vit_b4_c1_add2_rm1/seed2",  # SEED differs
        "mpl/xd_test.sh": "crossdataset/eurosat/MPL/vit_b4_c1_add2_rm1_cross_datasets_16shots/seed1",  # SOURCE
        "coop/eval.sh": "eurosat/CoOp/vit_b16_16shots/nctx16_cscFalse_ctpend/seed1",
    }[name]
    (tmp_path / "out" / trained).mkdir(parents=True)
    call = [name, "eurosat", "vit_b16" if name in OWN else 1]
    ended, _ = script(*call, PYTHON=sys.executable)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: no trained prompts in {tmp_path}/out/")
    assert f": the nearest is {tmp_path}/out/{trained}; train first, or check --model-dir" in line
    assert "SOURCE" in line


@pytest.mark.parametrize("name", sorted(name for name in SCRIPTS if name.endswith("_test.sh")))
def test_unfinished_training_is_an_error(name, script, tmp_path):
    trainer, *cfgs = CFG[name.split("/")[0]]
    shots = f"{trainer}/{cfgs[0]}/seed1", f"{trainer}/{cfgs[1]}_16shots/seed1"
    for run in (f"base2new/train_base/eurosat/shots_16/{shots[0]}", f"crossdataset/imagenet/{shots[1]}"):
        (tmp_path / "out" / run).mkdir(parents=True)
    ended, asked = script(name, "eurosat", 1)
    assert (ended.returncode, asked) == (2, [])
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the training run in ") and "is not finished: finish it first" in line
