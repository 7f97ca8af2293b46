"""Train or test one method on one dataset, by CoOp's command line.

    python train.py --root data --trainer MPL --dataset-config-file configs/datasets/eurosat.yaml \
        --config-file configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml --output-dir output/mpl DATASET.NUM_SHOTS 16

A run leaves log.txt, config.yaml, tensorboard/, the learned prompts and, last of all, results.json in its output
folder. The same command resumes a run that was cut off from its last complete epoch.
"""

import gc
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from common.start import required_packages

with required_packages():
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY

    import datasets
    from common.files import check_folder
    from common.results import FILE as RESULTS
    from experiments.arguments import check_given, parse_arguments, per_seed
    from experiments.session import run_command

NAMES = {"TRAINER.NAME", "DATASET.NAME", "DATASET.ROOT", "OUTPUT_DIR"}  # settings that a run cannot do without


def main(argv: list[str] | None = None) -> None:
    """The runs of all seeds, one after another. The first run that fails ends the command."""
    runs = per_seed(parse_arguments(argv))  # first, as help and wrong options do not need to wait for torch
    for args in runs:
        check_early(args)
    with required_packages():
        from experiments.configuration import setup_cfg
        from experiments.run import already_done, train_and_test
    for args in runs if len(runs) > 1 else ():
        already_done(args, setup_cfg(args))  # for its errors: no seed starts if another one cannot
    for args in runs:
        train_and_test(args)
        gc.collect()  # a trainer may have reference cycles, and the next run needs its memory


def check_early(args: Namespace) -> None:
    """Check that all options are given, and that the YAML files and the folders that they name exist.

    It needs no torch, whose import takes seconds.
    """
    if args.skip_finished and Path(args.output_dir, RESULTS).is_file():
        return
    if args.model_dir:
        remedy = "train first, or check --model-dir (scripts: SEED, SHOTS, CFG, OUT and, for xd_test.sh, SOURCE)"
        check_folder(Path(args.model_dir), "no trained prompts in", remedy)
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.set_new_allowed(True)  # the keys of methods are not known here
    for file in filter(None, (args.dataset_config_file, args.config_file)):
        cfg.merge_from_file(file)
    cfg.DATASET.ROOT, cfg.TRAINER.NAME = args.root or cfg.DATASET.ROOT, args.trainer or cfg.TRAINER.NAME
    cfg.OUTPUT_DIR = args.output_dir or cfg.OUTPUT_DIR
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    cfg.merge_from_list([word for key in NAMES & given.keys() for word in (key, given[key])])
    dataset_given = args.dataset_config_file or cfg.DATASET.NAME  # a file without a name may have an unknown key
    check_given(args, cfg.TRAINER.NAME, dataset_given, cfg.DATASET.ROOT, cfg.OUTPUT_DIR)
    known = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    dataset: Any = DATASET_REGISTRY.get(cfg.DATASET.NAME) if known else None
    if getattr(dataset, "is_synthetic", True):  # which datasets of other projects do not say
        return
    if not Path(os.path.expanduser(cfg.DATASET.ROOT), dataset.dataset_dir).is_dir():
        dataset(cfg, images=False)  # raises its own error


if __name__ == "__main__":
    run_command(main)
