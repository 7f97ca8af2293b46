"""All options and their defaults.

A project adds its own options before it merges a YAML file: ``cfg.TRAINER.MINE = CfgNode({"DEPTH": 9})``.
"""

from .limits import Choice, Flag, Integer, Number, Several, Text
from .node import CfgNode as CN

_C = CN()
_C.VERSION = 1
_C.OUTPUT_DIR = "./output"  # log, checkpoints and TensorBoard events
_C.RESUME = ""  # folder of the run to resume; empty: the run in OUTPUT_DIR, if there is one
_C.SEED = -1  # -1: not seeded
_C.CACHE = ""  # folder for what is computed once for many runs; empty: nothing is kept
_C.CACHE_GB = 20.0  # size limit of each kind of file in it, in gigabytes
_C.USE_CUDA = True
_C.VERBOSE = True

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width
_C.INPUT.INTERPOLATION = "bilinear"
_C.INPUT.TRANSFORMS = ()  # names, see dassl.data.transforms
_C.INPUT.NO_TRANSFORM = False
_C.INPUT.MAX_PIXELS = 89_478_485  # width times height; larger images are refused. The default is Pillow's
_C.INPUT.EXIF_ORIENTATION = True  # turn images as their EXIF data says; False: as stored, as the published Dassl
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # random greyscale: probability
_C.INPUT.GB_P = 0.5  # Gaussian blur: probability
_C.INPUT.GB_K = 21  # Gaussian blur: kernel size, pixels

_C.DATASET = CN()
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_SHOTS = -1  # images per class; -1: all of them

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.CACHE = False  # keep decoded training images in memory
_C.DATALOADER.CACHE_GB = 4.0  # size limit of these images in gigabytes
_C.DATALOADER.CACHE_TEST = False  # keep decoded, resized test images in a file in CACHE (empty: ~/.cache/dassl)
_C.DATALOADER.K_TRANSFORMS = 1  # augmented views per training image
_C.DATALOADER.RETURN_IMG0 = False  # also return the image without augmentation
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U = CN()
_C.DATALOADER.TRAIN_U.SAME_AS_X = True  # take the loader options of TRAIN_X
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""  # file to load weights from, by name and shape
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.ADAM_EPS = 1e-8  # also of AdamW, AMSGrad and RAdam
_C.OPTIM.STAGED_LR = False  # a smaller learning rate for all layers except NEW_LAYERS
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"
_C.OPTIM.STEPSIZE = (-1,)  # epochs; -1: MAX_EPOCH
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.WARMUP_EPOCH = -1  # below 1: no warm-up
_C.OPTIM.WARMUP_TYPE = "linear"
_C.OPTIM.WARMUP_CONS_LR = 1e-5  # learning rate of a constant warm-up
_C.OPTIM.WARMUP_MIN_LR = 1e-5  # learning rate at the start of a linear warm-up
_C.OPTIM.WARMUP_RECOUNT = True  # the scheduler counts its epochs from the end of the warm-up

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs between kept checkpoints; 0: only the last
_C.TRAIN.PRINT_FREQ = 10  # batches

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
_C.TEST.COMPUTE_CMAT = False
_C.TEST.NO_TEST = False
_C.TEST.SPLIT = "test"
_C.TEST.FINAL_MODEL = "last_step"  # or best_val: the epoch that is best on val, or on test if there is no val

_C.TRAINER = CN()
_C.TRAINER.NAME = ""

# Options of the published Dassl that nothing here reads: a published YAML file that sets them loads.
_C.INPUT.update(CUTOUT_N=1, CUTOUT_LEN=16, GN_MEAN=0.0, GN_STD=0.15)
_C.DATASET.update(NUM_LABELED=-1, VAL_PERCENT=0.1, ALL_AS_UNLABELED=False)
_C.DATASET.update(STL10_FOLD=-1, CIFAR_C_TYPE="", CIFAR_C_LEVEL=1)
_C.DATALOADER.TRAIN_X.update(N_DOMAIN=0, N_INS=16)
_C.DATALOADER.TRAIN_U.update(N_DOMAIN=0, N_INS=16)
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN({"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0})
_C.TRAIN.COUNT_ITER = "train_x"

# The limits of each option; `cfg.freeze()` checks them. The largest values are far above sensible ones, and keep
# a typing error from filling the memory. An option that is not listed accepts any text, or True and False, as its
# default is: names that a project registers (datasets, trainers, ...) are checked when they are used. The names below
# are those that the builders of samplers, transforms, optimisers and schedulers know.
RATE = Number(0, 1000)
PROBABILITY = Number(0, 1)
COUNT = Integer(1, 1_000_000)
EPOCHS = 100_000
SAMPLERS = ("RandomSampler", "SequentialSampler")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
TRANSFORMS = (
    *("random_flip", "random_resized_crop", "normalize", "random_crop", "center_crop"),
    *("randaugment", "colorjitter", "randomgrayscale", "gaussian_blur"),
)
OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")

OF_TYPE = {bool: Flag(), str: Text()}
LIMITS = {
    "VERSION": COUNT,
    "SEED": Integer(-1, 2**32 - 1, "-1: not seeded"),
    "INPUT.SIZE": Several(Integer(1, 4096), 2, 2),
    "INPUT.INTERPOLATION": Choice(*INTERPOLATIONS),
    "INPUT.TRANSFORMS": Several(Choice(*TRANSFORMS)),
    "INPUT.MAX_PIXELS": Integer(1, 1_000_000_000),
    "INPUT.PIXEL_MEAN": Several(Number(-1000, 1000), 3, 3),
    "INPUT.PIXEL_STD": Several(Number(0.001, 1000), 3, 3),
    "INPUT.CROP_PADDING": Integer(0, 1024),
    "INPUT.RRCROP_SCALE": Several(Number(0.0001, 1), 2, 2, ascending=True),
    "INPUT.RANDAUGMENT_N": Integer(0, 100),
    "INPUT.RANDAUGMENT_M": Integer(0, 30),
    "INPUT.COLORJITTER_B": Number(0, 1000),
    "INPUT.COLORJITTER_C": Number(0, 1000),
    "INPUT.COLORJITTER_S": Number(0, 1000),
    "INPUT.COLORJITTER_H": Number(0, 0.5),
    "INPUT.RGS_P": PROBABILITY,
    "INPUT.GB_P": PROBABILITY,
    "INPUT.GB_K": Integer(1, 999, "odd", range(0, 1000, 2)),
    "DATASET.SOURCE_DOMAINS": Several(Text()),
    "DATASET.TARGET_DOMAINS": Several(Text()),
    "DATASET.NUM_SHOTS": Integer(-1, 1_000_000, "-1 for all images, not 0", (0,)),
    "CACHE_GB": Number(0, 100_000),
    "DATALOADER.NUM_WORKERS": Integer(0, 256),
    "DATALOADER.CACHE_GB": Number(0, 100_000),
    "DATALOADER.K_TRANSFORMS": Integer(1, 100),
    "DATALOADER.TRAIN_X.SAMPLER": Choice(*SAMPLERS),
    "DATALOADER.TRAIN_X.BATCH_SIZE": COUNT,
    "DATALOADER.TRAIN_U.SAMPLER": Choice(*SAMPLERS),
    "DATALOADER.TRAIN_U.BATCH_SIZE": COUNT,
    "DATALOADER.TEST.SAMPLER": Choice(*SAMPLERS),
    "DATALOADER.TEST.BATCH_SIZE": COUNT,
    "OPTIM.NAME": Choice(*OPTIMISERS),
    "OPTIM.LR": RATE,
    "OPTIM.WEIGHT_DECAY": RATE,
    "OPTIM.MOMENTUM": PROBABILITY,
    "OPTIM.SGD_DAMPNING": PROBABILITY,
    "OPTIM.RMSPROP_ALPHA": PROBABILITY,
    "OPTIM.ADAM_BETA1": Number(0, 0.999999),
    "OPTIM.ADAM_BETA2": Number(0, 0.999999),
    "OPTIM.ADAM_EPS": Number(0, 1),
    "OPTIM.NEW_LAYERS": Several(Text()),
    "OPTIM.BASE_LR_MULT": RATE,
    "OPTIM.LR_SCHEDULER": Choice(*SCHEDULERS),
    "OPTIM.STEPSIZE": Several(Integer(-1, EPOCHS), least=1),
    "OPTIM.GAMMA": Number(0, 1000),
    "OPTIM.MAX_EPOCH": Integer(1, EPOCHS),
    "OPTIM.WARMUP_EPOCH": Integer(-1, EPOCHS),
    "OPTIM.WARMUP_TYPE": Choice(*WARMUPS),
    "OPTIM.WARMUP_CONS_LR": RATE,
    "OPTIM.WARMUP_MIN_LR": RATE,
    "TRAIN.CHECKPOINT_FREQ": Integer(0, EPOCHS),
    "TRAIN.PRINT_FREQ": COUNT,
    "TEST.SPLIT": Choice("test", "val"),
    "TEST.FINAL_MODEL": Choice("last_step", "best_val"),
}


def _register_limits(node, prefix=""):
    for key, default in node.items():
        name = f"{prefix}{key}"
        if isinstance(default, CN):
            _register_limits(default, f"{name}.")
        else:
            _C.register_limit(name, LIMITS.get(name, OF_TYPE.get(type(default))))


_register_limits(_C)
