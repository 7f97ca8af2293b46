"""Train or test one method on one dataset, by CoOp's command line.

    python train.py --root data --trainer MPL --output-dir output/mpl \
        --dataset-config-file configs/datasets/eurosat.yaml \
        --config-file configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml DATASET.NUM_SHOTS 16

A run leaves log.txt, config.yaml, tensorboard/, the learned prompts and, last of all, results.json
in its output folder. The same command resumes a run that was cut off from its last complete epoch.
"""

import gc

from common.start import required_packages

with required_packages():
    from runs.arguments import check_places, parse_arguments, per_seed
    from runs.session import run_command


def main(argv: list[str] | None = None) -> None:
    """The runs of all seeds, one after another. The first run that fails ends the command."""
    requests = per_seed(parse_arguments(argv))
    for args in requests:  # help and errors of options, files and folders do not wait for torch
        check_places(args)
    with required_packages():
        from runs.config import RunSpec
        from runs.folder import OutputFolder
        from runs.run import train_and_test
    specs = [RunSpec(args) for args in requests]
    for spec in specs:  # no seed starts if another one cannot
        spec.check()
        if len(specs) > 1:
            OutputFolder(spec).look()
    for spec in specs:
        train_and_test(spec)
        gc.collect()  # a trainer may have reference cycles, and the next run needs its memory


if __name__ == "__main__":
    run_command(main)
