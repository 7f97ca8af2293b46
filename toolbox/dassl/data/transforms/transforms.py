"""Build a torchvision transform from INPUT.TRANSFORMS.

Transforms are applied in the order of this file; their order in the config has no effect.
"""

from dassl.config.defaults import INTERPOLATIONS, TRANSFORMS
from dassl.data.transforms.rand_augment import RandAugment
from dassl.utils import UsageError, check_availability
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

INTERPOLATION_MODES = {name: InterpolationMode(name) for name in INTERPOLATIONS}


def build_transform(cfg, is_train=True, choices=None, verbose=True):
    """The training or the test transform of a config, from a PIL image to a float tensor (3, H, W).

    Args:
        cfg: the config; INPUT.SIZE is (height, width). INPUT.NO_TRANSFORM makes the result None.
        choices: names to use instead of INPUT.TRANSFORMS.
        verbose (bool): print the steps.

    Raises UsageError if a choice or the interpolation is unknown, or the kernel of the Gaussian
    blur is too large.
    """
    options = cfg.INPUT
    if options.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = options.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, TRANSFORMS)
    check_availability(options.INTERPOLATION, INTERPOLATIONS)
    steps = augmentations(options, choices) if is_train else centre(options)
    steps += to_tensor(options, choices)
    if verbose:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {' '.join(str(step).split())}")
    return T.Compose(steps)


def centre(options):
    """The first steps of a test: the resized centre of an image, or all of it."""
    size = tuple(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    if options.RESIZE_MODE == "squash":
        return [T.Resize(size, interpolation=interpolation)]
    # The shorter side
    return [T.Resize(max(size), interpolation=interpolation), T.CenterCrop(size)]


def augmentations(options, choices):
    """The first steps of training: those that are chosen, after a resize if none crops."""
    size = tuple(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    steps = {}
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps["resize"] = T.Resize(size, interpolation=interpolation)
    steps["random_crop"] = T.RandomCrop(size, padding=options.CROP_PADDING)
    steps["random_resized_crop"] = T.RandomResizedCrop(
        size, options.RRCROP_SCALE, interpolation=interpolation
    )
    steps["center_crop"] = T.CenterCrop(size)
    steps["random_flip"] = T.RandomHorizontalFlip()
    if "randaugment" in choices:
        steps["randaugment"] = RandAugment(options.RANDAUGMENT_N, options.RANDAUGMENT_M)
    steps["colorjitter"] = T.ColorJitter(
        options.COLORJITTER_B, options.COLORJITTER_C, options.COLORJITTER_S, options.COLORJITTER_H
    )
    steps["randomgrayscale"] = T.RandomGrayscale(p=options.RGS_P)
    if "gaussian_blur" in choices:
        steps["gaussian_blur"] = blur(options)
    return [step for name, step in steps.items() if name in ("resize", *choices)]


def blur(options):
    """The Gaussian blur; UsageError if its kernel is too large: it mirrors images at their
    border.
    """
    size = tuple(options.SIZE)
    most = 2 * min(size) - 1
    if most < options.GB_K:
        fault = f"INPUT.GB_K is {options.GB_K}"
        raise UsageError(f"{fault}: for INPUT.SIZE {size} give at most {most}")
    return T.RandomApply([T.GaussianBlur(options.GB_K)], p=options.GB_P)


def to_tensor(options, choices):
    """The last steps of both transforms, from an image to a tensor."""
    normalize = T.Normalize(mean=options.PIXEL_MEAN, std=options.PIXEL_STD)
    return [T.ToTensor(), *([normalize] if "normalize" in choices else [])]
