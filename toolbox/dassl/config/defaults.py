"""All options: their defaults, and the values that they accept.

A project adds its own options before it merges a YAML file: ``cfg.TRAINER.MINE = CfgNode({"DEPTH": 9})``.
"""

from .limits import Choice, Flag, Integer, Number, Several, Text
from .node import CfgNode

# The largest values are far above sensible ones, and keep a typing error from filling the memory.
FLAG, TEXT = Flag(), Text()
RATE = Number(0, 1000)
PROBABILITY = Number(0, 1)
GIGABYTES = Number(0, 100_000)
COUNT = Integer(1, 1_000_000)
EPOCHS = 100_000
# Names that the builders of samplers, transforms, optimisers and schedulers know. Those that a project registers
# (datasets, trainers, ...) are any text here, and are checked when they are used.
SAMPLERS = ("RandomSampler", "SequentialSampler")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
TRANSFORMS = (
    *("random_flip", "random_resized_crop", "normalize", "random_crop", "center_crop"),
    *("randaugment", "colorjitter", "randomgrayscale", "gaussian_blur"),
)
OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")

OPTIONS = {  # name: (default, what it accepts)
    "VERSION": (1, COUNT),  # of the form of the files
    "OUTPUT_DIR": ("./output", TEXT),  # log, checkpoints and TensorBoard events
    "RESUME": ("", TEXT),  # folder of a run to resume, unless OUTPUT_DIR has checkpoints
    "SEED": (-1, Integer(-1, 2**32 - 1, "-1: not seeded")),  # of sampled images, initial values and the order of images
    "CACHE": ("", TEXT),  # folder for what is computed once for many runs; empty: nothing is kept
    "CACHE_GB": (20.0, GIGABYTES),  # size limit of each kind of file in it, in gigabytes
    "USE_CUDA": (True, FLAG),  # compute on a GPU if there is one
    "VERBOSE": (True, FLAG),  # print more about the run
    "INPUT.SIZE": ((224, 224), Several(Integer(1, 4096), 2, 2)),  # height, width
    "INPUT.INTERPOLATION": ("bilinear", Choice(INTERPOLATIONS)),  # of the resized image
    "INPUT.TRANSFORMS": ((), Several(Choice(TRANSFORMS))),  # names, see dassl.data.transforms
    "INPUT.NO_TRANSFORM": (False, FLAG),  # leave it False: images without a transform cannot form a batch
    "INPUT.MAX_PIXELS": (89_478_485, Integer(1, 1_000_000_000)),  # larger images are refused; the default is Pillow's
    "INPUT.EXIF_ORIENTATION": (True, FLAG),  # turn images as their EXIF data says; False, as published: as stored
    "INPUT.PIXEL_MEAN": ([0.485, 0.456, 0.406], Several(Number(-1000, 1000), 3, 3)),  # red, green, blue
    "INPUT.PIXEL_STD": ([0.229, 0.224, 0.225], Several(Number(0.001, 1000), 3, 3)),  # red, green, blue
    "INPUT.CROP_PADDING": (4, Integer(0, 1024)),  # pixels around the image before a random crop
    "INPUT.RRCROP_SCALE": ((0.08, 1.0), Several(Number(0.0001, 1), 2, 2, ascending=True)),  # share of the area
    "INPUT.RANDAUGMENT_N": (2, Integer(0, 100)),  # operations on an image
    "INPUT.RANDAUGMENT_M": (10, Integer(0, 30)),  # strength of each
    "INPUT.COLORJITTER_B": (0.4, Number(0, 1000)),  # brightness
    "INPUT.COLORJITTER_C": (0.4, Number(0, 1000)),  # contrast
    "INPUT.COLORJITTER_S": (0.4, Number(0, 1000)),  # saturation
    "INPUT.COLORJITTER_H": (0.1, Number(0, 0.5)),  # hue
    "INPUT.RGS_P": (0.2, PROBABILITY),  # random greyscale: probability
    "INPUT.GB_P": (0.5, PROBABILITY),  # Gaussian blur: probability
    "INPUT.GB_K": (21, Integer(1, 999, "odd", range(0, 1000, 2))),  # Gaussian blur: kernel size, pixels
    "DATASET.ROOT": ("", TEXT),  # folder of the datasets
    "DATASET.NAME": ("", TEXT),  # name of its class
    "DATASET.SOURCE_DOMAINS": ((), Several(TEXT)),  # of datasets with domains
    "DATASET.TARGET_DOMAINS": ((), Several(TEXT)),  # of datasets with domains
    "DATASET.NUM_SHOTS": (-1, Integer(-1, 1_000_000, "-1: all images", (0,))),  # images per class
    "DATALOADER.NUM_WORKERS": (4, Integer(0, 256)),  # processes that read training images
    "DATALOADER.CACHE_TEST": (False, FLAG),  # keep decoded, resized test images in CACHE (or ~/.cache/dassl)
    "DATALOADER.K_TRANSFORMS": (1, Integer(1, 100)),  # augmented views per training image
    "DATALOADER.RETURN_IMG0": (False, FLAG),  # also return the image without augmentation
    "DATALOADER.TRAIN_X.SAMPLER": ("RandomSampler", Choice(SAMPLERS)),  # of labelled images
    "DATALOADER.TRAIN_X.BATCH_SIZE": (32, COUNT),  # labelled images in a step
    "DATALOADER.TRAIN_U.SAME_AS_X": (True, FLAG),  # take the loader options of TRAIN_X
    "DATALOADER.TRAIN_U.SAMPLER": ("RandomSampler", Choice(SAMPLERS)),  # of unlabelled images
    "DATALOADER.TRAIN_U.BATCH_SIZE": (32, COUNT),  # unlabelled images in a step
    "DATALOADER.TEST.SAMPLER": ("SequentialSampler", Choice(SAMPLERS)),
    "DATALOADER.TEST.BATCH_SIZE": (32, COUNT),  # images at a time in a test
    "MODEL.INIT_WEIGHTS": ("", TEXT),  # file to load weights from, by name and shape
    "MODEL.BACKBONE.NAME": ("", TEXT),  # published weights such as ViT-B/16, small, or a file
    "OPTIM.NAME": ("adam", Choice(OPTIMISERS)),
    "OPTIM.LR": (0.0003, RATE),  # learning rate
    "OPTIM.WEIGHT_DECAY": (5e-4, RATE),
    "OPTIM.MOMENTUM": (0.9, PROBABILITY),  # of SGD and RMSprop
    "OPTIM.SGD_DAMPNING": (0, PROBABILITY),  # of the momentum of SGD
    "OPTIM.SGD_NESTEROV": (False, FLAG),  # Nesterov momentum
    "OPTIM.RMSPROP_ALPHA": (0.99, PROBABILITY),  # decay of the mean of squares
    "OPTIM.ADAM_BETA1": (0.9, Number(0, 0.999999)),
    "OPTIM.ADAM_BETA2": (0.999, Number(0, 0.999999)),
    "OPTIM.ADAM_EPS": (1e-8, Number(0, 1)),  # also of AdamW, AMSGrad and RAdam
    "OPTIM.STAGED_LR": (False, FLAG),  # a smaller learning rate for all layers except NEW_LAYERS
    "OPTIM.NEW_LAYERS": ((), Several(TEXT)),  # names of layers with the full learning rate
    "OPTIM.BASE_LR_MULT": (0.1, RATE),  # factor of the learning rate of the other layers
    "OPTIM.LR_SCHEDULER": ("single_step", Choice(SCHEDULERS)),
    "OPTIM.STEPSIZE": ((-1,), Several(Integer(-1, EPOCHS), least=1)),  # epochs; -1: MAX_EPOCH
    "OPTIM.GAMMA": (0.1, Number(0, 1000)),  # factor of the learning rate at each step of the schedule
    "OPTIM.MAX_EPOCH": (10, Integer(1, EPOCHS)),  # epochs of training
    "OPTIM.WARMUP_EPOCH": (-1, Integer(-1, EPOCHS)),  # below 1: no warm-up
    "OPTIM.WARMUP_TYPE": ("linear", Choice(WARMUPS)),
    "OPTIM.WARMUP_CONS_LR": (1e-5, RATE),  # learning rate of a constant warm-up
    "OPTIM.WARMUP_MIN_LR": (1e-5, RATE),  # learning rate at the start of a linear warm-up
    "OPTIM.WARMUP_RECOUNT": (True, FLAG),  # the scheduler counts its epochs from the end of the warm-up
    "TRAIN.CHECKPOINT_FREQ": (0, Integer(0, EPOCHS)),  # epochs between kept checkpoints; 0: only the last
    "TRAIN.PRINT_FREQ": (10, COUNT),  # batches
    "TEST.EVALUATOR": ("Classification", TEXT),  # name of a registered evaluator
    "TEST.PER_CLASS_RESULT": (False, FLAG),  # also print the accuracy of each class
    "TEST.COMPUTE_CMAT": (False, FLAG),  # also save the confusion matrix, cmat.pt
    "TEST.NO_TEST": (False, FLAG),  # do not test after training
    "TEST.SPLIT": ("test", Choice(("test", "val"))),  # the images that are tested
    "TEST.FINAL_MODEL": ("last_step", Choice(("last_step", "best_val"))),  # best on val, or else on test
    "TRAINER.NAME": ("", TEXT),
}

_C = CfgNode()
for _name, (_default, _limit) in OPTIONS.items():
    *_groups, _key = _name.split(".")
    _node = _C
    for _group in _groups:
        _node = _node.setdefault(_group, CfgNode())
    _node[_key] = _default
    _C.register_limit(_name, _limit)

# Options of the published Dassl, and of earlier versions, that nothing here reads: a YAML file that sets them loads.
_C.DATALOADER.update(CACHE=False, CACHE_GB=4.0)
_C.INPUT.update(CUTOUT_N=1, CUTOUT_LEN=16, GN_MEAN=0.0, GN_STD=0.15)
_C.DATASET.update(NUM_LABELED=-1, VAL_PERCENT=0.1, ALL_AS_UNLABELED=False)
_C.DATASET.update(STL10_FOLD=-1, CIFAR_C_TYPE="", CIFAR_C_LEVEL=1)
_C.DATALOADER.TRAIN_X.update(N_DOMAIN=0, N_INS=16)
_C.DATALOADER.TRAIN_U.update(N_DOMAIN=0, N_INS=16)
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CfgNode({"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0})
_C.TRAIN.COUNT_ITER = "train_x"
