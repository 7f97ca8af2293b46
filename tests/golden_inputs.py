"""The inputs of golden files of methods on features: drawn as the files say, or encoded from drawn
images.
"""

import numpy as np
import torch
from torch.nn.functional import normalize


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def drawn_features(f):
    """The unit features of test images and of class texts that a file describes."""
    labels = f["test_labels"]
    centre = drawn(12, 2, f["dim"])
    means = drawn(10, f["classes"], f["dim"])
    image = (
        centre[0]
        + f["image_mean"] * means[labels]
        + f["image_noise"] * drawn(9, len(labels), f["dim"])
    )
    text = centre[1] + f["text_mean"] * means + f["text_noise"] * drawn(11, f["classes"], f["dim"])
    return normalize(image, dim=1), normalize(text, dim=1)


class Inputs:
    """The features of a file, all (..., joint) and not normalised, on the trainer's device."""

    sentences = None  # (classes, sentences, joint), unit

    def __init__(self, figures, trainer):
        case = figures["case"]
        self.device = trainer.device
        if case["input"] == "images":
            size = case["arch"]["image_resolution"]
            given = case.get("images", {})
            self.support_labels = given.get("support_labels") or figures["labels"]
            self.val_labels = given.get("val_labels", [])
            self.test = self.encode(trainer, drawn(7, case["batch"], 3, size, size))
            self.support = self.test[None]
            if "support_labels" in given:
                views = given["views"]
                n = len(self.support_labels)
                self.support = self.encode(trainer, drawn(8, views, n, 3, size, size))
            self.val = self.encode(trainer, drawn(13, len(self.val_labels), 3, size, size))
            self.train = (
                self.test
                if figures.get("labels") != given.get("support_labels")
                else self.support[0]
            )
            self.texts = None
            return
        f = case["features"]
        if "projection" in case:  # the features before it
            centre = drawn(12, 1, f["pre_dim"])
            means = drawn(10, f["classes"], f["pre_dim"])
            self.support, self.test = (
                f["image_scale"]
                * (centre + f["image_mean"] * means[f[key]] + f["image_noise"] * noise)
                for key, noise in {
                    "support_labels": drawn(8, f["views"], len(f["support_labels"]), f["pre_dim"]),
                    "test_labels": drawn(9, len(f["test_labels"]), f["pre_dim"]),
                }.items()
            )
            text = drawn(18, 1, f["dim"]) + f["text_noise"] * drawn(11, f["classes"], f["dim"])
            self.support_labels = f["support_labels"]
            self.val_labels = []
            self.val = self.test[:0]
            self.train = self.support[0]
            self.texts = f["text_scale"] * text
            return
        self.features = f
        self.centre = drawn(12, 2, f["dim"])
        self.support_labels = f["support_labels"]
        self.val_labels = f.get("val_labels", [])
        self.support = self.images(8, self.support_labels, f["views"])
        self.test = self.images(9, f["test_labels"])[0]
        self.val = self.images(13, self.val_labels)[0]
        self.train = self.support[0]
        self.texts = self.of_texts(11, f["classes"])
        if "sentences" in f:
            noise = f["sentence_noise"] * drawn(19, f["classes"], f["sentences"], f["dim"])
            noise = f["text_scale"] * noise.to(self.device)
            self.sentences = normalize(self.texts[:, None] + noise, dim=2)

    @staticmethod
    @torch.no_grad()
    def encode(trainer, images):
        return trainer.model.image_features(images.flatten(0, -4).to(trainer.device)).unflatten(
            0, images.shape[:-3]
        )

    def images(self, seed, labels, views=1, means=10, classes=None):
        f = self.features
        mean = (
            drawn(means, classes or f["classes"], f["dim"])[labels]
            if labels
            else torch.zeros(0, f["dim"])
        )
        noise = drawn(seed, views, len(labels), f["dim"])
        return f["image_scale"] * (
            self.centre[0] + f["image_mean"] * mean + f["image_noise"] * noise
        ).to(self.device)

    def of_texts(self, seed, classes, means=10):
        f = self.features
        mean = drawn(means, classes, f["dim"])
        noise = drawn(seed, classes, f["dim"])
        return f["text_scale"] * (
            self.centre[1] + f["text_mean"] * mean + f["text_noise"] * noise
        ).to(self.device)
