"""Augmentations that torchvision lacks or defines differently."""

import torch
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode


class Random2DTranslation(torch.nn.Module):
    """With probability `p` enlarge an image to 9/8 of the target size and crop at random; otherwise only resize.

    Args:
        height (int), width (int): target size.
        p (float): probability of a translation.
        interpolation: torchvision InterpolationMode.
    """

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        super().__init__()
        self.p = p
        enlarged = [round(height * 1.125), round(width * 1.125)]
        self.translate = T.Compose([T.Resize(enlarged, interpolation), T.RandomCrop([height, width])])
        self.resize = T.Resize([height, width], interpolation)

    def forward(self, img):
        return self.translate(img) if torch.rand(1).item() < self.p else self.resize(img)


class InstanceNormalization(torch.nn.Module):
    """Normalise each channel of an image (C, H, W) with its own mean and standard deviation."""

    def __init__(self, eps=1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, img):
        std, mean = torch.std_mean(img, dim=(1, 2), keepdim=True)  # (C, 1, 1)
        return (img - mean) / (std + self.eps)


class Cutout(torch.nn.Module):
    """Set squares around random pixels of an image (C, H, W) to zero; squares may extend beyond the border.

    Args:
        n_holes (int): number of squares.
        length (int): side of a square in pixels.
    """

    def __init__(self, n_holes=1, length=16):
        super().__init__()
        self.n_holes = n_holes
        self.length = length

    def forward(self, img):
        height, width = img.shape[-2:]
        img = img.clone()
        half = self.length // 2
        for _ in range(self.n_holes):
            y, x = torch.randint(height, (1,)).item(), torch.randint(width, (1,)).item()
            img[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0.0
        return img


class GaussianNoise(torch.nn.Module):
    """With probability `p` add noise of the given mean and standard deviation to an image tensor."""

    def __init__(self, mean=0, std=0.15, p=0.5):
        super().__init__()
        self.mean = mean
        self.std = std
        self.p = p

    def forward(self, img):
        if torch.rand(1).item() >= self.p:
            return img
        return img + torch.randn_like(img) * self.std + self.mean


def random_magnitude_op():
    """One RandAugment operation at a random magnitude for each image."""
    return T.RandomChoice([T.RandAugment(num_ops=1, magnitude=m) for m in range(31)])


def rand_augment_fixmatch(n=2):
    """`n` RandAugment operations of random magnitude (Sohn et al., FixMatch, 2020)."""
    return T.Compose([random_magnitude_op() for _ in range(n)])


def rand_augment2(n=2, p=0.6):
    """`n` RandAugment operations of random magnitude, each applied with probability `p`."""
    return T.Compose([T.RandomApply([random_magnitude_op()], p=p) for _ in range(n)])
