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
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, TRANSFORMS)
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
    size = tuple(cfg.INPUT.SIZE)
    kernel = cfg.INPUT.GB_K
    # The blur mirrors images at their border
    if is_train and "gaussian_blur" in choices and kernel >= 2 * min(size):
        raise UsageError(
            f"INPUT.GB_K is {kernel}: for INPUT.SIZE {size} give at most {2 * min(size) - 1}"
        )
    interpolation = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    if not is_train and cfg.INPUT.RESIZE_MODE == "squash":
        steps = [T.Resize(size, interpolation=interpolation)]
    elif not is_train:
        # The shorter side
        steps = [
            T.Resize(max(size), interpolation=interpolation),
            T.CenterCrop(size),
        ]
    else:
        options = cfg.INPUT
        jitter = (
            options.COLORJITTER_B,
            options.COLORJITTER_C,
            options.COLORJITTER_S,
            options.COLORJITTER_H,
        )
        augmentations = {
            "random_crop": lambda: T.RandomCrop(size, padding=options.CROP_PADDING),
            "random_resized_crop": lambda: T.RandomResizedCrop(
                size, options.RRCROP_SCALE, interpolation=interpolation
            ),
            "center_crop": lambda: T.CenterCrop(size),
            "random_flip": T.RandomHorizontalFlip,
            "randaugment": lambda: RandAugment(options.RANDAUGMENT_N, options.RANDAUGMENT_M),
            "colorjitter": lambda: T.ColorJitter(*jitter),
            "randomgrayscale": lambda: T.RandomGrayscale(p=options.RGS_P),
            "gaussian_blur": lambda: T.RandomApply([T.GaussianBlur(options.GB_K)], p=options.GB_P),
        }
        cropped = "random_crop" in choices or "random_resized_crop" in choices
        steps = [] if cropped else [T.Resize(size, interpolation=interpolation)]
        steps += [make() for name, make in augmentations.items() if name in choices]
    steps += to_tensor(cfg.INPUT, choices)
    if verbose:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {' '.join(str(step).split())}")
    return T.Compose(steps)


def to_tensor(options, choices):
    """The last steps of both transforms, from an image to a tensor."""
    normalize = T.Normalize(mean=options.PIXEL_MEAN, std=options.PIXEL_STD)
    return [T.ToTensor(), *([normalize] if "normalize" in choices else [])]
