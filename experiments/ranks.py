"""A run on several devices: torchrun starts one process for each of them (a rank), and ends all when one fails.

Rank 0 writes the files of the run and prints.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from common.errors import UsageError, one_line

PATIENCE = timedelta(hours=24)  # rank 0 may wait for another run in the output folder
# Settings and options that may differ between machines. KEY VALUE pairs are compared as settings.
MAY_DIFFER = {"OUTPUT_DIR", "RESUME", "DATASET.ROOT", "CACHE"} | {"output_dir", "resume", "root", "model_dir"}
MAY_DIFFER |= {"debug", "opts", "config_file", "dataset_config_file"}


def rank_count() -> int:
    """How many ranks the launcher has started."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that torchrun has started; without torchrun, do nothing.

    Only rank 0 prints, and of an error only the rank that fails first.

    Raises:
        UsageError: the ranks do not connect, or there are more ranks than GPUs.
    """
    if rank_count() == 1:
        yield
        return
    store = connect()
    import torch.distributed as dist

    from clip import current_ranks  # takes seconds

    nowhere = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if not current_ranks().first:
        sys.stdout = sys.stderr = nowhere
    try:
        yield
        current_ranks().objects(None)  # no rank ends before all have finished
    except BaseException as error:
        if fails_first(store):
            sys.stderr = sys.__stderr__
            raise
        sys.stderr = nowhere
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


def connect() -> Any:
    """Join the process group; returns its store."""
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.device_count() > 0
    if has_gpu:
        take_own_gpu(torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0")))
    # torchrun has a store before its ranks start, and if it is killed they have none. Others keep it in rank 0.
    minutes = 1 if dist.is_torchelastic_launched() else 5  # of each of two tries
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(minutes=minutes)))
        store.set_timeout(PATIENCE)
        # With --max-restarts torchrun keeps the store, and the keys in it.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        remedy = "start them by torchrun (if the port is in use, with another --master-port), or unset WORLD_SIZE"
        raise UsageError(f"cannot connect to the other ranks ({one_line(error)})", remedy) from error
    return store


def take_own_gpu(count: int, local_rank: int) -> None:
    """Let this process see only its own GPU; raises UsageError if the machine has fewer GPUs than ranks."""
    if local_rank >= count:
        remedy = "start one for each (--nproc-per-node), or hide the GPUs by CUDA_VISIBLE_DEVICES="
        raise UsageError(f"there are more ranks than the {count} GPUs of this machine", remedy)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local_rank]


def fails_first(store: Any) -> bool:
    """Whether no other rank has failed before."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # it has ended with the rank that kept it
        return False


def check_agreement(args: Namespace, cfg: Any, trainer: Any) -> None:
    """Raise UsageError unless all ranks have the same code, arguments, settings, images and weights."""
    from clip import current_ranks
    from clip.digest import digest
    from common.version import source
    from trainers.base.data_use import digest_of_splits

    from .configuration import flatten

    ranks = current_ranks()
    if ranks.count == 1:
        return
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in MAY_DIFFER}
    settings = {key: value for key, value in flatten(cfg).items() if key not in MAY_DIFFER}
    facts = {
        "choice of images": digest_of_splits(trainer.dm.dataset, cfg.DATASET.ROOT),
        "device": trainer.device.type,
        "backbone": digest(trainer.model.clip.state_dict()),
        "prompts": digest(trainer.model.state_dict()),
    }
    ranks.agree({"version of the project": source(), **options, **settings, **facts})
    print(f"{ranks.count} ranks: each computes a part of the classes and of the images")
