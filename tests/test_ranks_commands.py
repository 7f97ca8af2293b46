"""train.py on several ranks, as commands: what they print and leave behind, and how they end."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from finished import slowdown, wait_until

from common.errors import UsageError
from common.start import ROOT
from experiments.ranks import joined
from experiments.studies.group import execute_in_group, free_port
from experiments.studies.worker import WorkerDied

pytestmark = pytest.mark.slow

TORCHRUN = Path(sys.executable).with_name("torchrun")
KILLED = "was killed: run the same command again to resume from the last complete epoch"


@pytest.fixture
def arguments(eurosat, deep, tmp_path):
    """`arguments("MPL", KEY, VALUE, ..., options=[...])` of train.py: 3 epochs, with 3 images in a step."""

    def arguments(method, *overrides, options=(), config="vit_b4_c1_add2_rm1"):
        configs = ROOT / "configs"
        argv = [
            "--root",
            eurosat,
            "--backbone",
            deep,
            "--trainer",
            method,
            "--seed",
            1,
            "--output-dir",
            tmp_path / "out",
        ]
        argv += ["--config-file", configs / f"trainers/{method}/{config}.yaml", *options]
        argv += [
            "--dataset-config-file",
            configs / "datasets/eurosat.yaml",
            "DATASET.NUM_SHOTS",
            2,
            "OPTIM.MAX_EPOCH",
            3,
        ]
        argv += ["DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE", "(32, 32)", "DATALOADER.TRAIN_X.BATCH_SIZE", 3, *overrides]
        return list(map(str, argv))

    return arguments


@pytest.fixture
def ranks(begin):
    """`ranks(2, arguments, more_of_rank_1)` begins train.py on two ranks."""

    def ranks(count, argv, *more, port=None, started=None):
        port, processes = port or free_port(), []
        for rank in range(started or count):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            env = os.environ | {name: str(value) for name, value in variables.items()}
            own = [*argv, *(more[rank - 1] if 0 < rank <= len(more) else ())]
            env |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            processes.append(begin([sys.executable, "train.py", *own], cwd=ROOT, env=env))
        return processes

    return ranks


def ended(processes):
    """The exit status, and what is printed to stdout and stderr, of each."""
    printed = [process.communicate(timeout=200) for process in processes]
    return [(process.returncode, *each) for process, each in zip(processes, printed, strict=True)]


def ended_in_one_line(processes, *words, speaker=0, status=2):
    """One rank prints one line with these words; nothing more is printed."""
    for rank, (code, _, errors) in enumerate(ended(processes)):
        if rank == speaker:
            assert (code, errors.count("\n")) == (status, 1), errors
            assert errors.startswith("error: ") and all(word in errors for word in words), errors
        else:
            assert (code != 0, errors) == (True, "")


def results(folder):
    read = json.loads((folder / "results.json").read_text())
    return [read[key] for key in ("accuracy", "macro_f1", "n_test", "epochs")], read.get("ranks")


def prompts(folder):
    (file,) = folder.glob("*/model.pth.tar-3")
    return torch.load(file, weights_only=True)["state_dict"]


def test_torchrun_trains_as_one_process_and_prints_once(arguments, launch, begin, tmp_path):
    launch(*arguments("MPL"))
    alone, written = tmp_path / "alone", tmp_path / "out"
    written.rename(alone)
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "train.py", *arguments("MPL")]
    (code, printed, errors) = ended([begin(list(map(str, command)), cwd=ROOT)])[0]
    assert (code, "Traceback" in errors) == (0, False), errors
    assert printed.count("* accuracy:") == 1
    assert results(written) == (results(alone)[0], 2)
    for name, value in prompts(alone).items():
        assert torch.allclose(value, prompts(written)[name], rtol=1e-3, atol=1e-5), name
    made = [{path.name for path in folder.iterdir()} for folder in (alone, written)]
    assert made[0] == made[1]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_a_killed_rank_ends_the_other_and_one_process_resumes(victim, arguments, ranks, launch, tmp_path):
    argv = arguments("CoOp", "OPTIM.MAX_EPOCH", 20, config="vit_b16_ep50_ctxv1")
    processes = ranks(2, argv)
    wait_until(lambda: list(tmp_path.glob("out/*/model.pth.tar-*")), processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.time()
    ended_in_one_line([processes[1 - victim]], f"rank {victim} {KILLED}")
    assert time.time() - killed < 10 * slowdown()
    resumed = launch(*argv)
    assert resumed.status == 0 and "Found checkpoint" in resumed.printed
    assert (tmp_path / "out/results.json").is_file()


@pytest.mark.thorough
def test_an_interrupt_of_one_rank_ends_all(arguments, ranks, tmp_path):
    processes = ranks(2, arguments("MPL", "OPTIM.MAX_EPOCH", 300))
    wait_until(lambda: list(tmp_path.glob("out/*/model.pth.tar-*")), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ended_in_one_line(processes, "rank 1 was interrupted: run the same command again")


@pytest.mark.thorough
def test_an_interrupt_of_all_ranks_prints_one_line(arguments, ranks, tmp_path):
    processes = ranks(2, arguments("MPL", "OPTIM.MAX_EPOCH", 300))
    wait_until(lambda: list(tmp_path.glob("out/*/model.pth.tar-*")), processes[0])
    for process in processes:  # as Ctrl-C reaches them
        process.send_signal(signal.SIGINT)
    first, second = ended(processes)
    assert first[0] == 130 and first[2].splitlines()[-1].startswith("Interrupted. Run the same command again")
    assert second[2] == ""


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(
            ["OPTIM.LRR", "0.5"],
            ["rank 1 failed: unknown config key OPTIM.LRR", "did you mean OPTIM.LR?"],
            marks=pytest.mark.thorough,
        ),
        (["OPTIM.LR", "0.5"], ["OPTIM.LR of rank 1 differs (0.5) from rank 0 (", "give all ranks the same"]),
    ],
)
def test_an_error_of_one_rank_is_printed_once(other, words, arguments, ranks, tmp_path):
    ended_in_one_line(ranks(2, arguments("MPL"), other), *words)
    assert not (tmp_path / "out").exists()


def test_a_failing_rank_skips_pythons_own_end(begin):
    """Threads of the group would abort it there, now and then: exit status -6 and a line of the C++ library."""
    code = """
import atexit, os, torch.distributed as dist
from common.errors import UsageError
from experiments.session import cli_main
def fail():
    atexit.register(os.abort)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    raise UsageError("wrong", "do this")
cli_main(fail)
"""
    assert ended([begin([sys.executable, "-c", code], cwd=ROOT)]) == [(2, "", "error: wrong: do this\n")]


@pytest.mark.thorough
def test_without_a_seed_several_ranks_are_refused(arguments, ranks):
    argv = arguments("MPL")
    at = argv.index("--seed")
    ended_in_one_line(ranks(2, argv[:at] + argv[at + 2 :]), "--seed is missing: several ranks need it")


@pytest.mark.thorough
def test_torchrun_starts_all_ranks_again(arguments, begin, tmp_path):
    """With --max-restarts, after one is killed; and workers of a data loader do not hide its end."""
    argv = arguments("MPL", "OPTIM.MAX_EPOCH", 30, "DATALOADER.NUM_WORKERS", 1)
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "train.py", *argv]
    process = begin(list(map(str, command)), cwd=ROOT)
    wait_until(lambda: list(tmp_path.glob("out/*/model.pth.tar-*")), process)
    os.kill(max(children(process.pid)), signal.SIGKILL)
    (code, printed, errors) = ended([process])[0]
    assert code == 0, errors
    assert printed.count("* accuracy:") == 1 and "Found checkpoint" in printed
    assert errors.count(f"rank 1 {KILLED}") <= 1  # torchrun may end rank 0 before it prints


def children(process):
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_port_in_use_ends_in_one_line(arguments, ranks):
    with socket.create_server(("", 0)) as server:
        ended_in_one_line(
            ranks(2, arguments("MPL"), port=server.getsockname()[1], started=1),
            "cannot connect to the other ranks at 127.0.0.1:",
            "choose another --master-port",
        )


@pytest.mark.thorough
def test_zero_shot_is_tested_by_all_ranks(arguments, ranks, launch, tmp_path):
    argv = arguments("CoOp", "TRAINER.ZEROSHOTCLIP.PREC", "fp32", config="vit_b16_ep50_ctxv1")
    argv[argv.index("--trainer") + 1] = "ZeroshotCLIP"
    assert launch(*argv).status == 0
    alone = results(tmp_path / "out")[0]
    assert [code for code, *_ in ended(ranks(2, argv))] == [0, 0]
    assert results(tmp_path / "out") == (alone, 2)


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"RANK": "0", "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', which is not a number from 0 to 1"),
        ({"RANK": "2"}, "RANK is '2', which is not a number from 0 to 1"),
        ({"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    ],
)
def test_variables_of_the_launcher_are_checked(variables, fault, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{fault}.*: start several ranks by torchrun"), joined():
        pass


@pytest.mark.parametrize("tool", ["predict", "study"])
def test_other_commands_refuse_to_run_on_several_ranks(tool, command, monkeypatch):
    from experiments.studies import command as study
    from inference import predict

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    status, _, errors = command({"predict": predict, "study": study}[tool])
    assert (status, errors) == (2, ["error: this command does not run on several devices: start it without torchrun"])


def test_a_group_of_a_study_executes_a_run_and_reports_its_error(arguments, tmp_path):
    assert execute_in_group(arguments("MPL"), 2, 1) is None
    assert results(tmp_path / "out")[1] == 2
    error = execute_in_group(arguments("MPL", "TRAINER.MPL.N_CTX", -3), 2, 1)
    assert error and "N_CTX" in error and (tmp_path / "out/error.txt").is_file()
    with pytest.raises(WorkerDied, match="rank 0 ended without a result"):
        execute_in_group(["--bogus"], 2, 1)
