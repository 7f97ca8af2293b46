"""Train or test one method on one dataset, by CoOp's command line.

    python train.py --root data --trainer MPL --dataset-config-file configs/datasets/eurosat.yaml \
        --config-file configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml --output-dir output/mpl DATASET.NUM_SHOTS 16

A run leaves log.txt, config.yaml, tensorboard/, the learned prompts and, last of all, results.json in its output
folder. The same command resumes a run that was cut off from its last complete epoch.
"""

from common.start import required_packages

with required_packages():
    from experiments.arguments import parse_arguments, per_seed
    from experiments.early import check_early
    from experiments.ranks import joined
    from experiments.session import cli_main


def main(argv: list[str] | None = None) -> None:
    with joined():
        args = parse_arguments(argv)  # first, as help and wrong options do not need to wait for torch
        for each in per_seed(args):
            check_early(each)
        with required_packages():
            from experiments.run import train_and_test
        train_and_test(args)


if __name__ == "__main__":
    cli_main(main, several_ranks=True)
