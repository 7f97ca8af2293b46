"""Train or test one method on one dataset, by CoOp's command line.

    python train.py --root data --trainer MPL --dataset-config-file configs/datasets/eurosat.yaml \
        --config-file configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml --output-dir output/mpl DATASET.NUM_SHOTS 16

A run leaves log.txt, config.yaml, tensorboard/, the learned prompts and, last of all, results.json in its output
folder. The same command resumes a run that was cut off from its last complete epoch.
"""

import gc

from common.start import required_packages

with required_packages():
    from experiments.arguments import parse_arguments, per_seed
    from experiments.early import check_early
    from experiments.ranks import joined
    from experiments.session import run_command


def main(argv: list[str] | None = None) -> None:
    """The runs of all seeds, one after another. The first run that fails ends the command."""
    with joined():
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


if __name__ == "__main__":
    run_command(main, several_ranks=True)
