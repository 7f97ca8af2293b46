"""All settings: their defaults, and the values that they accept.

A project adds its own settings before it merges a YAML file: ``cfg.TRAINER.MINE = CfgNode({"DEPTH":
9})``.
"""

from typing import Literal

from common.schema import FLAG, TEXT, TEXTS, Accepts, add_settings

from .node import CfgNode

# The largest values are far above sensible ones, and keep a typing error from filling the memory.
RATE = Accepts(float, 0, 1000)
PROBABILITY = Accepts(float, 0, 1)
GIGABYTES = Accepts(float, 0, 100_000)
COUNT = Accepts(int, 1, 1_000_000)
SEEDS = Accepts(int, -1, 2**32 - 1, "-1: not seeded")
EPOCHS = 100_000
# Names that the builders of samplers, transforms, optimisers and schedulers know. Those that a
# project registers (datasets, trainers, ...) are any text here, and are checked when they are used.
SAMPLERS = ("RandomSampler", "SequentialSampler")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
RESIZE_MODES = ("shortest", "squash")  # open_clip's
TRANSFORMS = (
    *("random_flip", "random_resized_crop", "normalize", "random_crop", "center_crop"),
    *("randaugment", "colorjitter", "randomgrayscale", "gaussian_blur"),
)
OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")


def is_odd(value):
    return value % 2


def is_ascending(values):
    return list(values) == sorted(values)


SHARES = Accepts(tuple[float, float], 0.0001, 1, "ascending", is_ascending)
SHOTS = Accepts(int, -1, 1_000_000, "not 0; -1: all images", bool)
SETTINGS = {  # name: (default, what it accepts, its meaning)
    "VERSION": (1, COUNT, "of the form of the files"),
    "OUTPUT_DIR": ("./output", TEXT, "log, checkpoints and TensorBoard events"),
    "RESUME": ("", TEXT, "folder of a run to resume, unless OUTPUT_DIR has checkpoints"),
    "SEED": (-1, SEEDS, "of sampled images, initial values and the order of images"),
    "CACHE": ("", TEXT, "folder for what is computed once for many runs; empty: nothing is kept"),
    "CACHE_GB": (20.0, GIGABYTES, "size limit of each kind of file in it, in gigabytes"),
    "USE_CUDA": (True, FLAG, "compute on a GPU if there is one"),
    "VERBOSE": (True, FLAG, "print more about the run"),
    "INPUT.SIZE": ((224, 224), Accepts(tuple[int, int], 1, 4096), "height, width"),
    "INPUT.INTERPOLATION": ("bilinear", Accepts(Literal[INTERPOLATIONS]), "of the resized image"),
    "INPUT.RESIZE_MODE": (
        "shortest",
        Accepts(Literal[RESIZE_MODES]),
        "of test images; squash: to INPUT.SIZE, no crop",
    ),
    "INPUT.TRANSFORMS": (
        (),
        Accepts(list[Literal[TRANSFORMS]]),
        "names, see dassl.data.transforms",
    ),
    "INPUT.NO_TRANSFORM": (
        False,
        FLAG,
        "leave it False: images without a transform cannot form a batch",
    ),
    "INPUT.MAX_PIXELS": (
        89_478_485,
        Accepts(int, 1, 10**9),
        "larger images are refused; the default is Pillow's",
    ),
    "INPUT.EXIF_ORIENTATION": (
        True,
        FLAG,
        "turn images as their EXIF data says; False, as published: as stored",
    ),
    "INPUT.PIXEL_MEAN": (
        [0.485, 0.456, 0.406],
        Accepts(tuple[float, float, float], -1000, 1000),
        "red, green, blue",
    ),
    "INPUT.PIXEL_STD": (
        [0.229, 0.224, 0.225],
        Accepts(tuple[float, float, float], 0.001, 1000),
        "red, green, blue",
    ),
    "INPUT.CROP_PADDING": (
        4,
        Accepts(int, 0, 1024),
        "pixels around the image before a random crop",
    ),
    "INPUT.RRCROP_SCALE": ((0.08, 1.0), SHARES, "share of the area"),
    "INPUT.RANDAUGMENT_N": (2, Accepts(int, 0, 100), "operations on an image"),
    "INPUT.RANDAUGMENT_M": (10, Accepts(int, 0, 30), "strength of each"),
    "INPUT.COLORJITTER_B": (0.4, Accepts(float, 0, 1000), "brightness"),
    "INPUT.COLORJITTER_C": (0.4, Accepts(float, 0, 1000), "contrast"),
    "INPUT.COLORJITTER_S": (0.4, Accepts(float, 0, 1000), "saturation"),
    "INPUT.COLORJITTER_H": (0.1, Accepts(float, 0, 0.5), "hue"),
    "INPUT.RGS_P": (0.2, PROBABILITY, "random greyscale: probability"),
    "INPUT.GB_P": (0.5, PROBABILITY, "Gaussian blur: probability"),
    "INPUT.GB_K": (21, Accepts(int, 1, 999, "odd", is_odd), "Gaussian blur: kernel size, pixels"),
    "DATASET.ROOT": ("", TEXT, "folder of the datasets"),
    "DATASET.NAME": ("", TEXT, "name of its class"),
    "DATASET.SOURCE_DOMAINS": ((), TEXTS, "of datasets with domains"),
    "DATASET.TARGET_DOMAINS": ((), TEXTS, "of datasets with domains"),
    "DATASET.NUM_SHOTS": (-1, SHOTS, "images per class"),
    "DATALOADER.NUM_WORKERS": (4, Accepts(int, 0, 256), "processes that read training images"),
    "DATALOADER.K_TRANSFORMS": (1, Accepts(int, 1, 100), "augmented views per training image"),
    "DATALOADER.RETURN_IMG0": (False, FLAG, "also return the image without augmentation"),
    "DATALOADER.TRAIN_X.SAMPLER": (
        "RandomSampler",
        Accepts(Literal[SAMPLERS]),
        "of labelled images",
    ),
    "DATALOADER.TRAIN_X.BATCH_SIZE": (32, COUNT, "labelled images in a step"),
    "DATALOADER.TRAIN_U.SAME_AS_X": (True, FLAG, "take the loader options of TRAIN_X"),
    "DATALOADER.TRAIN_U.SAMPLER": (
        "RandomSampler",
        Accepts(Literal[SAMPLERS]),
        "of unlabelled images",
    ),
    "DATALOADER.TRAIN_U.BATCH_SIZE": (32, COUNT, "unlabelled images in a step"),
    "DATALOADER.TEST.SAMPLER": ("SequentialSampler", Accepts(Literal[SAMPLERS])),
    "DATALOADER.TEST.BATCH_SIZE": (32, COUNT, "images at a time in a test"),
    "MODEL.INIT_WEIGHTS": ("", TEXT, "file to load weights from, by name and shape"),
    "MODEL.BACKBONE.NAME": ("", TEXT, "published weights such as ViT-B/16, small, or a file"),
    "OPTIM.NAME": ("adam", Accepts(Literal[OPTIMISERS])),
    "OPTIM.LR": (0.0003, RATE, "learning rate"),
    "OPTIM.WEIGHT_DECAY": (5e-4, RATE),
    "OPTIM.MOMENTUM": (0.9, PROBABILITY, "of SGD and RMSprop"),
    "OPTIM.SGD_DAMPNING": (0, PROBABILITY, "of the momentum of SGD"),
    "OPTIM.SGD_NESTEROV": (False, FLAG, "Nesterov momentum"),
    "OPTIM.RMSPROP_ALPHA": (0.99, PROBABILITY, "decay of the mean of squares"),
    "OPTIM.ADAM_BETA1": (0.9, Accepts(float, 0, 0.999999)),
    "OPTIM.ADAM_BETA2": (0.999, Accepts(float, 0, 0.999999)),
    "OPTIM.ADAM_EPS": (1e-8, Accepts(float, 0, 1), "also of AdamW, AMSGrad and RAdam"),
    "OPTIM.STAGED_LR": (False, FLAG, "a smaller learning rate for all layers except NEW_LAYERS"),
    "OPTIM.NEW_LAYERS": ((), TEXTS, "names of layers with the full learning rate"),
    "OPTIM.BASE_LR_MULT": (0.1, RATE, "factor of the learning rate of the other layers"),
    "OPTIM.LR_SCHEDULER": ("single_step", Accepts(Literal[SCHEDULERS])),
    "OPTIM.STEPSIZE": (
        (-1,),
        Accepts(list[int], -1, EPOCHS, "at least one", bool),
        "epochs; -1: MAX_EPOCH",
    ),
    "OPTIM.GAMMA": (
        0.1,
        Accepts(float, 0, 1000),
        "factor of the learning rate at each step of the schedule",
    ),
    "OPTIM.MAX_EPOCH": (10, Accepts(int, 1, EPOCHS), "epochs of training"),
    "OPTIM.WARMUP_EPOCH": (-1, Accepts(int, -1, EPOCHS), "below 1: no warm-up"),
    "OPTIM.WARMUP_TYPE": ("linear", Accepts(Literal[WARMUPS])),
    "OPTIM.WARMUP_CONS_LR": (1e-5, RATE, "learning rate of a constant warm-up"),
    "OPTIM.WARMUP_MIN_LR": (1e-5, RATE, "learning rate at the start of a linear warm-up"),
    "OPTIM.WARMUP_RECOUNT": (
        True,
        FLAG,
        "the scheduler counts its epochs from the end of the warm-up",
    ),
    "TRAIN.CHECKPOINT_FREQ": (
        0,
        Accepts(int, 0, EPOCHS),
        "epochs between kept checkpoints; 0: only the last",
    ),
    "TRAIN.PRINT_FREQ": (10, COUNT, "batches"),
    "TEST.EVALUATOR": ("Classification", TEXT, "name of a registered evaluator"),
    "TEST.PER_CLASS_RESULT": (False, FLAG, "also print the accuracy of each class"),
    "TEST.COMPUTE_CMAT": (False, FLAG, "also save the confusion matrix, cmat.pt"),
    "TEST.NO_TEST": (False, FLAG, "do not test after training"),
    "TEST.SPLIT": ("test", Accepts(Literal["test", "val"]), "the images that are tested"),
    "TEST.FINAL_MODEL": (
        "last_step",
        Accepts(Literal["last_step", "best_val"]),
        "best on val, or else on test",
    ),
    "TRAINER.NAME": ("", TEXT),
}


_C = CfgNode()
for _name, _setting in SETTINGS.items():
    _node = _C
    for _group in _name.split(".")[:-1]:
        _node = _node.setdefault(_group, CfgNode())
    add_settings(_C, {_name: _setting})

# Settings of the published Dassl, and of earlier versions, that nothing here reads: a YAML file
# that sets them loads.
_C.DATALOADER.update(CACHE=False, CACHE_GB=4.0)
_C.INPUT.update(CUTOUT_N=1, CUTOUT_LEN=16, GN_MEAN=0.0, GN_STD=0.15)
_C.DATASET.update(NUM_LABELED=-1, VAL_PERCENT=0.1, ALL_AS_UNLABELED=False)
_C.DATASET.update(STL10_FOLD=-1, CIFAR_C_TYPE="", CIFAR_C_LEVEL=1)
_C.DATALOADER.TRAIN_X.update(N_DOMAIN=0, N_INS=16)
_C.DATALOADER.TRAIN_U.update(N_DOMAIN=0, N_INS=16)
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CfgNode(
    {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0}
)
_C.TRAIN.COUNT_ITER = "train_x"


def get_cfg_default():
    """A new copy of the default configuration."""
    return _C.clone()


def clean_cfg(cfg, trainer):
    """Remove the sections of other trainers from ``cfg.TRAINER``: all except the name of this one
    in upper case.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
