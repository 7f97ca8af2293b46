"""A run on several devices: one process for each of them, a rank, as torchrun starts them.

Rank 0 writes what the run leaves behind, and prints. The others work in temporary folders.
"""

import hashlib
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.errors import UsageError, one_line

from .known_errors import known_error
from .watch import ARRIVAL, REMEDY, OtherRankFailed, Watch

if TYPE_CHECKING:
    from torch import Tensor
    from yacs.config import CfgNode

    from clip import Ranks  # takes seconds

PATIENCE = timedelta(hours=2)  # for what other ranks still compute
INTERRUPTED = 130  # exit status, as of a shell
OWN = {"OUTPUT_DIR", "RESUME", "DATASET.ROOT", "CACHE"}  # settings that may differ between machines


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

    When a rank fails, all end: rank 0 with its error, the others without a word.

    Raises:
        UsageError: the ranks do not find together, there are more ranks than GPUs, or another rank has failed.
    """
    if rank_count() == 1:
        yield
        return
    watch = join()
    if watch.rank:
        silence()
    try:
        yield
        finish()
    except BaseException as error:
        end_by(error, watch)
        raise
    watch.leave(None)


def join() -> Watch:
    """Find the other ranks."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        what = f"WORLD_SIZE is {rank_count()}, but {missing[0]} is not set"
        raise UsageError(what, "start several ranks by torchrun, or unset WORLD_SIZE for one")
    import torch.distributed as dist

    gpu = take_own_gpu()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))
        watch = Watch(store, rank, count)
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        store.set_timeout(PATIENCE)
        group: Any = dist.PrefixStore("run", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"cannot meet the other ranks at {address} ({one_line(error)})",
            "check that all are started and that the port is free, or choose another --master-port",
        ) from error
    return watch


def take_own_gpu() -> bool:
    """Let this process see one GPU only, that of its place among the ranks of the machine; returns whether it has any.

    Raises:
        UsageError: the machine has GPUs, but not as many.
    """
    import torch

    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK") or 0)
    if not count:
        return False
    if local >= count:
        raise UsageError(
            f"rank {os.environ['RANK']} has no GPU of its own: this machine has {count}",
            "start fewer ranks (--nproc-per-node)",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local]
    return True


def finish() -> None:
    """Leave the group, when all ranks have come to their end."""
    import torch.distributed as dist

    from clip import current_ranks

    current_ranks().objects(None)
    dist.destroy_process_group()


def end_by(error: BaseException, watch: Watch) -> None:
    """Tell the other ranks of an error, and end this one, silently unless it speaks for all.

    Raises:
        OtherRankFailed: another rank has.
        SystemExit: this rank does not print.
    """
    watch.deaf = True
    interrupted = isinstance(error, KeyboardInterrupt)
    known = known_error(error)
    if interrupted or not isinstance(error, (UsageError, SystemExit, FloatingPointError)):
        # A broken connection, or a launcher that ends all ranks: if another has failed first, that shows in a moment.
        watch.lost.wait(1)
    is_bug = not (known or interrupted or watch.lost.is_set() or isinstance(error, SystemExit))
    what = f"was interrupted: {REMEDY}" if interrupted else f"failed: {known or type(error).__name__}"
    watch.leave(f"rank {watch.rank} {what}", "".join(traceback.format_exception(error)) if is_bug else "")
    if watch.lost.is_set() and watch.speaks:
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
    real = Path(cfg.OUTPUT_DIR)
    if ranks.first:
        yield real
        return
    with TemporaryDirectory(prefix="rank-") as folder:
        for best in real.glob("*/model-best.pth.tar"):  # the resumed run may find no better one
            copy = Path(folder, best.parent.name, best.name)
            copy.parent.mkdir()
            shutil.copyfile(best, copy)
        cfg.defrost()
        cfg.RESUME, cfg.OUTPUT_DIR = cfg.RESUME or cfg.OUTPUT_DIR, folder
        cfg.freeze()
        yield Path(folder)


def facts_of(cfg: "CfgNode", trainer: Any) -> dict[str, object]:
    """What all ranks of a run must have in common: names, and checksums."""
    from common.version import source

    from .configuration import flatten

    settings = {key: value for key, value in flatten(cfg).items() if key not in OWN}
    return {
        "version of the project": source(),
        **{f"{key} (a setting)": str(value) for key, value in settings.items()},
        "choice of images": digest_of_images(trainer),
        "backbone": digest_of(trainer.model.clip.state_dict()),
        "start of its prompts": digest_of(trainer.model.state_dict()),
    }


def digest_of(tensors: "dict[str, Tensor]") -> str:
    from clip.digest import add_tensors

    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()


def digest_of_images(trainer: Any) -> str:
    """A checksum of the paths below the dataset's root, the labels and the class names of all splits."""
    dataset, digest = trainer.dm.dataset, hashlib.sha256()
    for split in (dataset.train_x, dataset.val, dataset.test):
        for item in split or ():
            path = os.path.relpath(item.impath, trainer.cfg.DATASET.ROOT)
            digest.update(f"{path}\0{item.label}\0{item.classname}\n".encode(errors="surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()
