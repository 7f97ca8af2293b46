"""train.py on several ranks, as commands: what they print and leave behind, and how they end."""

import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from drawn import prompts_in, results
from finished import slowdown, wait_until

from common.errors import UsageError
from common.start import ROOT
from experiments.ranks import connect, joined
from experiments.studies import command as study

pytestmark = pytest.mark.slow

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]
FEW = ("OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 3)
LOST = "error: another rank has ended too early: run the same command again to resume from the last complete epoch"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


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


def ended_in_one_line(processes, *words):
    """All fail, and one of them prints one line with these words; nothing more is printed."""
    statuses, _, errors = zip(*ended(processes), strict=True)
    assert 0 not in statuses
    (line,) = "".join(errors).splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


def has_checkpoint(folder):
    return lambda: list(folder.glob("out/*/model.pth.tar-*"))


@pytest.mark.thorough
def test_torchrun_trains_as_one_process_and_prints_once(argv, launch, begin, tmp_path):
    line = argv("MPL", *FEW, "TEST.FINAL_MODEL", "best_val", "TEST.COMPUTE_CMAT", True, config="")
    launch(*line)
    alone, written = tmp_path / "alone", tmp_path / "out"
    written.rename(alone)
    (code, printed, errors) = ended([begin([*TORCHRUN, "train.py", *line], cwd=ROOT)])[0]
    assert (code, "Traceback" in errors) == (0, False), errors
    assert printed.count("* accuracy:") == alone.joinpath("log.txt").read_text().count("* accuracy:")
    one, two = results(alone), results(written)
    assert all(one[key] == two[key] for key in ("accuracy", "macro_f1", "n_test", "epochs")) and two["ranks"] == 2
    for name, value in prompts_in(alone).items():
        assert torch.allclose(value, prompts_in(written)[name], rtol=1e-3, atol=1e-5), name
    made = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (alone, written)]
    events = [{path for path in each if "tfevents" in path} for each in made]
    assert made[0] - events[0] == made[1] - events[1] and list(map(len, events)) == [1, 1]


@pytest.mark.thorough
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_and_one_process_resumes(victim, argv, ranks, launch, tmp_path):
    line = argv("CoOp", *FEW, "OPTIM.MAX_EPOCH", 20, config="vit_b16_ep50_ctxv1")
    processes = ranks(2, line)
    wait_until(has_checkpoint(tmp_path), processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.time()
    ((code, _, errors),) = ended([processes[1 - victim]])
    assert code != 0 and "Traceback" not in errors
    assert not victim or errors == f"{LOST}\n"  # without rank 0, which has the store here, torch complains
    assert time.time() - killed < 10 * slowdown()
    resumed = launch(*line)
    assert resumed.status == 0 and "Found checkpoint" in resumed.printed
    assert (tmp_path / "out/results.json").is_file()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "pair", [("OPTIM.LRR", "unknown config key"), ("OPTIM.LR", "OPTIM.LR of rank 1 differs (0.5)")]
)
def test_an_error_of_one_rank_is_printed_once(pair, argv, ranks, tmp_path):
    key, words = pair
    ended_in_one_line(ranks(2, argv("MPL", *FEW, config=""), [key, "0.5"]), words)
    assert list((tmp_path / "out").rglob("*")) == []


@pytest.mark.thorough
def test_torchrun_starts_all_ranks_again(argv, begin, tmp_path):
    """With --max-restarts, after one is killed; and workers of a data loader do not hide its end."""
    line = argv("MPL", *FEW, "OPTIM.MAX_EPOCH", 30, "DATALOADER.NUM_WORKERS", 1, config="")
    process = begin([*TORCHRUN, "--max-restarts", "1", "train.py", *line], cwd=ROOT)
    wait_until(has_checkpoint(tmp_path), process)
    os.kill(max(children(process.pid)), signal.SIGKILL)
    (code, printed, errors) = ended([process])[0]
    assert code == 0, errors
    assert printed.count("* accuracy:") == 1 and "Found checkpoint" in printed


def children(process):
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_port_in_use_ends_in_one_line(argv, ranks):
    with socket.create_server(("", 0)) as server:
        ended_in_one_line(
            ranks(2, argv("MPL", *FEW, config=""), port=server.getsockname()[1], started=1),
            "cannot connect to the other ranks (",
            "with another --master-port",
        )


@pytest.mark.parametrize(("launched", "minutes"), [(False, 5), (True, 1)])
def test_ranks_whose_torchrun_was_killed_soon_end(launched, minutes, monkeypatch):
    """They waited up to twelve minutes for its store."""
    given = []
    monkeypatch.setattr("torch.distributed.rendezvous", lambda url, timeout: given.append(timeout) or iter([]))
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: launched)
    with pytest.raises(StopIteration):
        connect()
    assert given == [timedelta(minutes=minutes)]


def test_a_variable_of_the_launcher_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="cannot connect .*RANK expected.*: start them by torchrun"), joined():
        pass


def test_other_commands_refuse_to_run_on_several_ranks(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = "error: this command does not run on several devices: start it without torchrun"
    assert command(study).error == line
