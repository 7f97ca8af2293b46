"""Build a torchvision transform from INPUT.TRANSFORMS.

Transforms are applied in the order of this file; their order in the config has no effect.
"""

from dassl.data.transforms.augmentations import (
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    rand_augment2,
    rand_augment_fixmatch,
)
from dassl.utils import UsageError, check_availability
from torchvision import transforms as T
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]


def build_transform(cfg, is_train=True, choices=None):
    """Build the training or the test transform of a config.

    Args:
        cfg: the config; INPUT.SIZE is (height, width).
        is_train (bool): whether to build the training or the test transform.
        choices: names to use instead of INPUT.TRANSFORMS.

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
        check_availability(choice, AVAI_CHOICES)
    check_availability(cfg.INPUT.INTERPOLATION, list(INTERPOLATION_MODES))
    size, kernel = tuple(cfg.INPUT.SIZE), cfg.INPUT.GB_K
    if is_train and "gaussian_blur" in choices and kernel >= 2 * min(size):  # the blur mirrors images at their border
        raise UsageError(f"INPUT.GB_K is {kernel}: for INPUT.SIZE {size} give at most {2 * min(size) - 1}")

    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for description, _ in steps:
        print(f"+ {description}")
    return T.Compose([step for _, step in steps])


def _train_steps(options, choices):
    """The (description, transform) pairs of a training transform."""
    size = list(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    on_image = {
        "random_translation": lambda: ("random translation", Random2DTranslation(*size)),
        "random_crop": lambda: (
            f"random crop (padding = {options.CROP_PADDING})",
            T.RandomCrop(size, padding=options.CROP_PADDING),
        ),
        "random_resized_crop": lambda: (
            f"random resized crop (size={tuple(size)}, scale={tuple(options.RRCROP_SCALE)})",
            T.RandomResizedCrop(size, scale=options.RRCROP_SCALE, interpolation=interpolation),
        ),
        "center_crop": lambda: (f"center crop (size={tuple(size)})", T.CenterCrop(size)),
        "random_flip": lambda: ("random flip", T.RandomHorizontalFlip()),
        "imagenet_policy": lambda: ("imagenet policy", _policy(AutoAugmentPolicy.IMAGENET)),
        "cifar10_policy": lambda: ("cifar10 policy", _policy(AutoAugmentPolicy.CIFAR10)),
        "svhn_policy": lambda: ("svhn policy", _policy(AutoAugmentPolicy.SVHN)),
        "randaugment": lambda: (
            f"randaugment (n={options.RANDAUGMENT_N}, m={options.RANDAUGMENT_M})",
            T.RandAugment(options.RANDAUGMENT_N, options.RANDAUGMENT_M),
        ),
        "randaugment_fixmatch": lambda: (
            f"randaugment_fixmatch (n={options.RANDAUGMENT_N})",
            rand_augment_fixmatch(options.RANDAUGMENT_N),
        ),
        "randaugment2": lambda: (
            f"randaugment2 (n={options.RANDAUGMENT_N})",
            rand_augment2(options.RANDAUGMENT_N),
        ),
        "colorjitter": lambda: (
            f"color jitter (brightness={options.COLORJITTER_B}, contrast={options.COLORJITTER_C}, "
            f"saturation={options.COLORJITTER_S}, hue={options.COLORJITTER_H})",
            T.ColorJitter(options.COLORJITTER_B, options.COLORJITTER_C, options.COLORJITTER_S, options.COLORJITTER_H),
        ),
        "randomgrayscale": lambda: (f"random gray scale (p={options.RGS_P})", T.RandomGrayscale(p=options.RGS_P)),
        "gaussian_blur": lambda: (
            f"gaussian blur (kernel={options.GB_K}, p={options.GB_P})",
            T.RandomApply([T.GaussianBlur(options.GB_K)], p=options.GB_P),
        ),
    }
    on_tensor = {
        "cutout": lambda: (
            f"cutout (n_holes={options.CUTOUT_N}, length={options.CUTOUT_LEN})",
            Cutout(options.CUTOUT_N, options.CUTOUT_LEN),
        ),
        "normalize": lambda: _normalize(options),
        "gaussian_noise": lambda: (
            f"gaussian noise (mean={options.GN_MEAN}, std={options.GN_STD})",
            GaussianNoise(options.GN_MEAN, options.GN_STD),
        ),
        "instance_norm": lambda: ("instance normalization", InstanceNormalization()),
    }

    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=interpolation)))
    steps += [make() for name, make in on_image.items() if name in choices]
    steps.append(_to_tensor())
    steps += [make() for name, make in on_tensor.items() if name in choices]
    return steps


def _test_steps(options, choices):
    """The (description, transform) pairs of a test transform."""
    size = list(options.SIZE)
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    steps = [
        (f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=interpolation)),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        _to_tensor(),
    ]
    if "normalize" in choices:
        steps.append(_normalize(options))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _policy(policy):
    return T.AutoAugment(policy, fill=[128, 128, 128])


def _to_tensor():
    return "to torch tensor of range [0, 1]", T.ToTensor()


def _normalize(options):
    mean, std = options.PIXEL_MEAN, options.PIXEL_STD
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean=mean, std=std)
