from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from torch.nn.functional import one_hot

from .base.together import SupportSettings, TogetherMethod, log_of

PUBLISHED_K_EFF = 5  # without support, whatever the number of classes of a task
TINY = 1e-15  # added to probabilities, and less than the weight of a class that is there
STEPS = 1000  # of majorise-minimise, at most
CHECK = 50  # steps between two looks at the change
CHANGE = 1e-11  # of the squared parameters, at which the steps end


@dataclass(frozen=True)
class EMDirichletSettings(SupportSettings):
    """T sharpens the probabilities; ITER are the rounds. K_EFF are about how many classes a task
    with SUPPORT has: the more classes there are for each, the more do large clusters attract.
    MATCHING gives each class to one cluster.
    """

    T: int | float = 30.0
    ITER: int = 20
    K_EFF: int = 5
    MATCHING: bool = True
    ranges = {"ITER": (1, 1000), "K_EFF": (1, 100_000), "T": (0, 1000)}


@TRAINER_REGISTRY.register()
class EMDirichlet(TogetherMethod):
    """A Dirichlet distribution of the probabilities for each class, of a task with few classes
    (Martin et al., CVPR 2024).
    """

    Settings = EMDirichletSettings
    hard = False

    def predict_task(self, images):
        z = (self.settings.T * images.cosines.double()).softmax(dim=1)
        if images.support is not None:
            features, labels = images.support
            shown = (self.settings.T * (features @ images.texts.T).double()).softmax(dim=1)
            return log_of(self.rounds(z, shown, labels)[0])
        u, _ = self.rounds(z, z[:0], torch.zeros(0, dtype=torch.long, device=z.device))
        labels = matched(u.argmax(dim=1), z, self.settings.MATCHING)
        return log_of(one_hot(labels, z.shape[1]).to(z))

    def rounds(self, z, shown, labels):
        """The probabilities of clusters (images, classes), and the parameters of their Dirichlet
        distributions (classes, classes).

        Args:
            z: (images, classes), probabilities of the classes.
            shown: (support, classes), those of the support; of none if there is no support.
            labels: (support,).
        """
        classes = z.shape[1]
        few = classes // (self.settings.K_EFF if len(shown) else PUBLISHED_K_EFF)
        known = (torch.cat([z, shown]) + TINY).log()
        of_support = one_hot(labels, classes).to(z)
        u = z
        a = torch.ones_like(z[:1]).repeat(classes, 1)
        for _ in range(self.settings.ITER):
            weights = torch.cat([u, of_support])
            total = weights.sum(dim=0)[:, None]
            means = weights.T @ known / total.clamp(min=TINY)
            a = fitted(a, means, total > TINY)
            u = clusters(known[: len(z)], a, few * ((u.mean(dim=0) + TINY).log() + 1))
            if self.hard:
                u = one_hot(u.argmax(dim=1), classes).to(z)
        return u, a


def clusters(rows, a, bonus):
    """(images, classes): the probabilities of logarithms (images, classes) under Dirichlet
    distributions, with a bonus (classes,) for large clusters.
    """
    constant = a.sum(dim=1).lgamma() - a.lgamma().sum(dim=1)
    return (rows @ (a - 1).T + constant + bonus).softmax(dim=1)


@TRAINER_REGISTRY.register()
class HardEMDirichlet(EMDirichlet):
    """EMDirichlet with one cluster for each image in each round."""

    Settings = EMDirichletSettings
    hard = True


def fitted(a, means, there):
    """The parameters (classes, classes) of Dirichlet distributions with these means of logarithms,
    by majorise-minimise steps from `a`. Classes that are not `there`, (classes, 1), stay.
    """
    for step in range(STEPS):
        psi = (a + 1).digamma()
        curve = (2 * (psi * a - (a + 1).lgamma()) / a.square()).abs()
        curve = torch.where(a > 1e-11, curve, torch.pi**2 / 6)
        slope = psi - a.sum(dim=1, keepdim=True).digamma() - curve * a - means
        following = ((slope.square() + 4 * curve).sqrt() - slope) / (2 * curve)
        following = torch.where(there, following, a)
        before = a
        a = following
        if step and step % CHECK == 0:
            change = (a - before).square().sum() / before.square().sum()
            if change < CHANGE:
                break
    return a


def matched(clusters, z, one_to_one):
    """(images,): the class of each image's cluster, by the mean probabilities of its images; each
    class for one cluster, or the most probable one for each.
    """
    numbers = list(dict.fromkeys(clusters.tolist()))
    means = torch.stack([z[clusters == number].mean(dim=0) for number in numbers])
    classes = means.argmax(dim=1)
    if one_to_one:
        from scipy.optimize import linear_sum_assignment  # which takes a while

        _, best = linear_sum_assignment(means.cpu().numpy(), maximize=True)
        classes = torch.from_numpy(best)
    found = torch.empty_like(clusters)
    for number, label in zip(numbers, classes.tolist(), strict=True):
        found[clusters == number] = label
    return found
