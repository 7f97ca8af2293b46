"""Errors, registry, logger, meters, seeds and other helpers, and the names that projects import."""

import pickle
import sys
from importlib import import_module

import pytest
from dassl import utils
from dassl.utils import ImageError, UnknownNameError, UsageError
from torch.utils.data import DataLoader


def test_error_of_a_dataloader_worker_keeps_its_class_and_its_last_line():
    def read(path):
        try:
            return utils.read_image(path)
        except ImageError as error:
            raise UnknownNameError(f"cause: {error}") from error

    iterator = iter(DataLoader(["gone.png"], batch_size=None, collate_fn=read, num_workers=1))
    with pytest.raises(UnknownNameError) as caught:
        next(iterator)
    # The garbage collector, which finds it in a cycle, would wait 5 s for each worker
    iterator._shutdown_workers()
    expected = (
        "there is no image at 'gone.png': check DATASET.ROOT and that the dataset is complete"
    )
    assert str(caught.value) == f"cause: {expected}"


def test_error_classes_and_texts():
    for cls, kind in [
        (UnknownNameError, KeyError),
        (utils.MissingFileError, FileNotFoundError),
        (ImageError, OSError),
    ]:
        error = cls("plain line")
        assert (
            isinstance(error, UsageError)
            and isinstance(error, ValueError)
            and isinstance(error, kind)
        )
        assert str(error) == "plain line" and str(pickle.loads(pickle.dumps(error))) == "plain line"
    assert str(UsageError("Caught between two stools")) == "Caught between two stools"


def test_setup_logger_writes_a_new_file_each_time_and_restores_stdout(tmp_path, capsys):
    console = sys.stdout
    for text in ("first ä", "second", "third"):
        with utils.setup_logger(str(tmp_path / "run")) as log:
            with utils.setup_logger(str(tmp_path / f"{text}.log")):
                print("both")
            assert sys.stdout is log
            print(text)
    log.close()  # a second time
    assert sys.stdout is console and utils.setup_logger(None).file is None
    logs = sorted((tmp_path / "run").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert logs[0].name == "log.txt" and all(path.name.startswith("log.txt-") for path in logs[1:])
    assert [path.read_text("utf-8") for path in logs] == [
        "both\nfirst ä\n",
        "both\nsecond\n",
        "both\nthird\n",
    ]
    assert (tmp_path / "third.log").read_text() == "both\n"
    assert capsys.readouterr().out == "both\nfirst ä\nboth\nsecond\nboth\nthird\n"


def test_log_has_each_line_as_soon_as_it_is_printed(tmp_path):
    """A killed run, or one whose output goes to a file, had an empty log."""
    with utils.setup_logger(str(tmp_path)) as log:
        print("epoch [1/50]")
        log.file.write("epoch [2/50]\n")  # as print_detail does on a terminal
        assert (tmp_path / "log.txt").read_text() == "epoch [1/50]\nepoch [2/50]\n"


# What 29 published projects of the CoOp family import
IMPORTED = {
    "config": "clean_cfg get_cfg_default",
    "data": "DataManager DatasetWrapper",
    "data.data_manager": "DatasetWrapper build_data_loader build_transform",
    "data.datasets": "DATASET_REGISTRY DatasetBase Datum",
    "data.datasets.build": "DATASET_REGISTRY build_dataset",
    "data.samplers": "build_sampler",
    "data.transforms": "INTERPOLATION_MODES build_transform",
    "data.transforms.transforms": "build_transform",
    "engine": "SimpleTrainer TRAINER_REGISTRY TrainerX build_trainer",
    "engine.trainer": "AverageMeter MetricMeter SummaryWriter TrainerX",
    "evaluation": "build_evaluator",
    "evaluation.build": "EVALUATOR_REGISTRY",
    "evaluation.evaluator": "Classification",
    "metrics": "compute_accuracy",
    "modeling": "build_backbone build_head",
    "optim": "build_lr_scheduler build_optimizer",
    "optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler",
    "optim.radam": "RAdam",
    "utils": "AverageMeter MetricMeter check_isfile collect_env_info count_num_param "
    "listdir_nohidden load_checkpoint "
    "load_pretrained_weights mkdir_if_missing read_image read_json resume_from_checkpoint "
    "save_checkpoint "
    "set_random_seed setup_logger tolist_if_not write_json",
    "utils.tools": "mkdir_if_missing",
}


@pytest.mark.parametrize("module", IMPORTED)
def test_names_imported_by_projects_exist(module):
    found = import_module(f"dassl.{module}")
    assert [name for name in IMPORTED[module].split() if not hasattr(found, name)] == []
