"""Build a torchvision transform from INPUT.TRANSFORMS.

Transforms are applied in the order of this file; their order in the config has no effect.
"""

from dassl.config.defaults import INTERPOLATIONS, TRANSFORMS
from dassl.utils import UsageError, check_availability
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

INTERPOLATION_MODES = {name: InterpolationMode(name) for name in INTERPOLATIONS}


def build_transform(cfg, is_train=True, choices=None, verbose=True):
    """Build the training or the test transform of a config.

    Args:
        cfg: the config; INPUT.SIZE is (height, width).
        is_train (bool): whether to build the training or the test transform.
        choices: names to use instead of INPUT.TRANSFORMS.
        verbose (bool): whether to print the steps.

    Returns:
        A callable from a PIL image to a float tensor (3, H, W); None with INPUT.NO_TRANSFORM.

    Raises:
        UsageError: a choice or the interpolation is unknown, or the kernel of the Gaussian blur is too large.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, TRANSFORMS)
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
    size, kernel = tuple(cfg.INPUT.SIZE), cfg.INPUT.GB_K
    if is_train and "gaussian_blur" in choices and kernel >= 2 * min(size):  # the blur mirrors images at their border
        raise UsageError(f"INPUT.GB_K is {kernel}: for INPUT.SIZE {size} give at most {2 * min(size) - 1}")

    if verbose:
        print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for description, _ in steps if verbose else ():
        print(f"+ {description}")
    return T.Compose([step for _, step in steps])


def _train_steps(options, choices):
    """The (description, transform) pairs of a training transform."""
    size = list(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    jitter = (options.COLORJITTER_B, options.COLORJITTER_C, options.COLORJITTER_S, options.COLORJITTER_H)
    known = {
        "random_crop": (
            f"random crop (padding = {options.CROP_PADDING})",
            T.RandomCrop(size, padding=options.CROP_PADDING),
        ),
        "random_resized_crop": (
            f"random resized crop (size={tuple(size)}, scale={tuple(options.RRCROP_SCALE)})",
            T.RandomResizedCrop(size, scale=options.RRCROP_SCALE, interpolation=interpolation),
        ),
        "center_crop": (f"center crop (size={tuple(size)})", T.CenterCrop(size)),
        "random_flip": ("random flip", T.RandomHorizontalFlip()),
        "randaugment": (
            f"randaugment (n={options.RANDAUGMENT_N}, m={options.RANDAUGMENT_M})",
            T.RandAugment(options.RANDAUGMENT_N, options.RANDAUGMENT_M),
        ),
        "colorjitter": (
            "color jitter (brightness, contrast, saturation, hue = {}, {}, {}, {})".format(*jitter),
            T.ColorJitter(*jitter),
        ),
        "randomgrayscale": (f"random gray scale (p={options.RGS_P})", T.RandomGrayscale(p=options.RGS_P)),
        "gaussian_blur": (
            f"gaussian blur (kernel={options.GB_K}, p={options.GB_P})",
            T.RandomApply([T.GaussianBlur(options.GB_K)], p=options.GB_P),
        ),
    }
    steps = [step for name, step in known.items() if name in choices]
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.insert(0, (f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=interpolation)))
    return [*steps, *to_tensor(options, choices)]


def _test_steps(options, choices):
    """The (description, transform) pairs of a test transform."""
    size = list(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    return [
        (f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=interpolation)),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        *to_tensor(options, choices),
    ]


def to_tensor(options, choices):
    """The last (description, transform) pairs, of both transforms."""
    steps = [("to torch tensor of range [0, 1]", T.ToTensor())]
    if "normalize" in choices:
        mean, std = options.PIXEL_MEAN, options.PIXEL_STD
        steps.append((f"normalization (mean={mean}, std={std})", T.Normalize(mean=mean, std=std)))
    return steps
