"""A run on several devices: one process for each of them, a rank, as torchrun starts them.

Rank 0 writes what the run leaves behind, and prints. The others work in temporary folders.
"""

import multiprocessing
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from common.errors import UsageError, one_line

from .known_errors import known_error, loaded
from .shortages import causes
from .watch import ARRIVAL, REMEDY, OtherRankFailed, Watch

if TYPE_CHECKING:
    from argparse import Namespace

    from yacs.config import CfgNode

    from clip import Ranks  # takes seconds

PATIENCE = timedelta(hours=24)  # for what other ranks still compute
INTERRUPTED = 130  # exit status, as of a shell
# Settings and options that may differ between machines. Trailing pairs are compared as settings.
MAY_DIFFER = {"OUTPUT_DIR", "RESUME", "DATASET.ROOT", "CACHE"} | {"output_dir", "resume", "root", "model_dir"}
MAY_DIFFER |= {"began", "debug", "opts", "config_file", "dataset_config_file"}
temporary_folders: list[str] = []  # of this process


def rank_count() -> int:
    """How many ranks the launcher has started."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


def silence() -> None:
    """Print nothing more: another rank prints the same."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that a launcher has started; without a launcher, do nothing.

    When a rank fails, all end: rank 0 with its error, the others silently.

    Raises:
        UsageError: the ranks do not connect, there are more ranks than GPUs, or another rank has failed.
    """
    if rank_count() == 1:
        yield
        return
    check_variables()
    has_gpu = take_own_gpu()
    store, watch = connect()
    try:
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        group = dist.PrefixStore("run", store)
        dist.init_process_group(backend, store=group, rank=watch.rank, world_size=rank_count(), timeout=PATIENCE)
        if watch.rank:
            silence()
        yield
        finish()
    except BaseException as error:
        end_by(error, watch)
        raise
    watch.leave(None)


def check_variables() -> None:
    """Raise UsageError for a variable of the launcher that is missing or not such a number."""
    remedy = "start several ranks by torchrun, or unset WORLD_SIZE for one"
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value:
            raise UsageError(f"WORLD_SIZE is {rank_count()}, but {name} is not set", remedy)
        most = 65_535 if name == "MASTER_PORT" else rank_count() - 1
        if name != "MASTER_ADDR" and not (value.isdecimal() and int(value) <= most):
            raise UsageError(f"{name} is {value!r}, which is not a number from 0 to {most}", remedy)


def connect() -> tuple[Any, Watch]:
    """The store of the ranks, by which they find one another, and the watch over them.

    Raises:
        UsageError: a rank is missing.
    """
    import torch.distributed as dist

    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))
        # torchrun keeps the store when it starts all ranks again (--max-restarts).
        own = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        watch = Watch(own, rank, count, remove_temporary_folders)
        store.set_timeout(PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"cannot connect to the other ranks at {address} ({one_line(error)})",
            "check that all are started and that the port is free, or choose another --master-port",
        ) from error
    return own, watch


def take_own_gpu() -> bool:
    """Let this process see one GPU only, that of its place among the ranks of the machine; returns whether it has any.

    Raises:
        UsageError: the machine has GPUs, but not as many as ranks.
    """
    import torch

    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK") or 0)
    ranks = max(local + 1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    if not count:
        return False
    if ranks > count:
        raise UsageError(
            f"{ranks} ranks are on a machine with {count} GPUs",
            "start one for each (--nproc-per-node), or hide the GPUs by CUDA_VISIBLE_DEVICES=",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local]
    return True


def finish() -> None:
    """Leave the group, when all ranks have finished."""
    import torch.distributed as dist

    from clip import current_ranks

    current_ranks().objects(None)
    dist.destroy_process_group()


def end_by(error: BaseException, watch: Watch) -> None:
    """Tell the other ranks of an error, and end this one, silently unless it prints for all.

    Raises:
        OtherRankFailed: another rank has.
        SystemExit: this rank does not print.
    """
    watch.ignores_signal = True
    interrupted = any(isinstance(each, KeyboardInterrupt) for each in causes(error))
    known = known_error(error)
    if interrupted or not isinstance(error, (UsageError, SystemExit, FloatingPointError)):
        # A broken connection, or a launcher that ends all ranks: if another has failed first, that shows in a moment.
        watch.lost.wait(1)
    is_bug = not (known or interrupted or watch.lost.is_set() or isinstance(error, SystemExit))
    what = f"was interrupted: {REMEDY}" if interrupted else f"failed: {known or type(error).__name__}"
    trace = "".join(traceback.format_exception(error)) if is_bug else ""
    watch.leave(f"rank {watch.rank} {what}", trace, interrupted)
    if interrupted and watch.interrupted and not watch.rank:  # Ctrl-C reaches every rank
        raise KeyboardInterrupt from error
    if watch.lost.is_set() and watch.prints:
        sys.stderr = sys.__stderr__
        raise OtherRankFailed(watch.reason) from error
    if watch.rank:
        sys.exit(INTERRUPTED if interrupted else 2)


@contextmanager
def own_folder(cfg: "CfgNode", ranks: "Ranks") -> Iterator[Path]:
    """The output folder of a rank: for all but rank 0 a temporary one, with the run of the real one to resume from.

    Args:
        cfg: of the run; changed.
        ranks: of the run.
    """
    if ranks.first:
        yield Path(cfg.OUTPUT_DIR)
        return
    with TemporaryDirectory(prefix="rank-") as folder:
        temporary_folders.append(folder)
        cfg.defrost()
        cfg.RESUME, cfg.OUTPUT_DIR = cfg.RESUME or cfg.OUTPUT_DIR, folder
        cfg.freeze()
        yield Path(folder)


def copy_best(cfg: "CfgNode", ranks: "Ranks") -> None:
    """Give a rank's own folder the best epoch so far of the run that it resumes, which may remain the best."""
    if ranks.first:
        return
    for best in Path(cfg.RESUME).glob("*/model-best.pth.tar"):
        copy = Path(cfg.OUTPUT_DIR, best.parent.name, best.name)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(best, copy)


def in_group() -> bool:
    """Whether this process is still one of several ranks."""
    return any(is_initialized() for is_initialized in loaded("torch.distributed", "is_initialized"))


def end_process(error: BaseException) -> NoReturn:
    """End a rank after an error as Python would, but at once: threads of its group would abort Python's own end."""
    for child in multiprocessing.active_children():
        child.terminate()
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        status = error.code or 0
    elif isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    remove_temporary_folders()
    os._exit(status)


def remove_temporary_folders() -> None:
    """Before a process ends at once."""
    for folder in temporary_folders:
        shutil.rmtree(folder, ignore_errors=True)


def options_of(args: "Namespace") -> dict[str, object]:
    """Everything that all ranks must have in common before they read a file."""
    from common.version import source

    given = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in MAY_DIFFER}
    return {"version of the project": source(), **given}


def settings_of(cfg: "CfgNode") -> dict[str, object]:
    """The configuration that all ranks must have in common."""
    from .configuration import flatten

    return {key: value for key, value in flatten(cfg).items() if key not in MAY_DIFFER}


def facts_of(trainer: Any) -> dict[str, object]:
    """Everything that must be equal on all ranks."""
    from clip.digest import digest

    return {
        "device": trainer.device.type,
        "backbone": digest(trainer.model.clip.state_dict()),
        "start of the prompts": digest(trainer.model.state_dict()),
    }
