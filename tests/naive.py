"""Dense float64 computations of methods that answer for many images together, from their
descriptions alone: every image with every image, and one class after another.
"""

import numpy as np

SMOOTH = 50


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def affinity(x, count):
    """The cosines of each image with its nearest others."""
    cosines = x @ x.T
    kept = np.zeros_like(cosines)
    for row, (own, to) in enumerate(zip(cosines, kept, strict=True)):
        near = np.argsort(-own, kind="stable")[1 : count + 1]
        to[near] = own[near]
        assert row not in near
    return kept


def assigned(z, evidence, graph, prior, weight):
    """Five updates of the assignments."""
    for _ in range(5):
        total = evidence + weight * (graph.T @ z + graph @ z)
        total -= total.max(axis=1, keepdims=True)
        z = prior * np.exp(total / SMOOTH)
        z /= z.sum(axis=1, keepdims=True)
    return z


def transclip(x, texts):
    count, width = x.shape
    classes = range(len(texts))
    graph = affinity(x, 3)
    prior = softmax(100 * x @ texts.T)
    z = prior
    variance = np.ones(width) / width
    means = []
    for label in classes:
        first = np.argsort(-z[:, label], kind="stable")[:8]
        means.append(unit((z[first, label][:, None] * x[first]).mean(axis=0)))
    for last in [False] * 10 + [True]:
        evidence = np.stack([-((x - means[c]) ** 2 / variance).sum(axis=1) / 2 for c in classes], 1)
        z = assigned(z, evidence, graph, prior, SMOOTH / 6)
        if not last:
            means = unit((z.T @ x) / z.sum(axis=0)[:, None])
            spread = sum((z[:, [c]] * (x - means[c]) ** 2).sum(axis=0) for c in classes)
            variance = spread / z.sum()
    return z


def stata(x, texts):
    classes = range(len(texts))
    graph = affinity(x, 3)
    prior = softmax(100 * x @ texts.T)
    z = prior
    means = texts
    start = sum((z[:, [c]] * (x - texts[c]) ** 2).sum(axis=0) for c in classes) / len(x)
    variances = [start] * len(texts)
    for last in [False] * 10 + [True]:
        distances = [
            ((x - means[c]) ** 2 / variances[c] + np.log(variances[c])).sum(axis=1) for c in classes
        ]
        z = assigned(z, -np.stack(distances, axis=1) / 2, graph, prior, SMOOTH / 6)
        if not last:
            seen = np.bincount(z.argmax(axis=1), minlength=len(texts))
            share = seen / (1 + seen)
            sums = z.sum(axis=0)
            own = unit((z.T @ x) / sums[:, None])
            means = unit(share[:, None] * own + (1 - share)[:, None] * texts)
            variances = [
                share[c] * (z[:, [c]] * (x - means[c]) ** 2).sum(axis=0) / sums[c]
                + (1 - share[c]) * (start + (texts[c] - means[c]) ** 2)
                for c in classes
            ]
    return z


def zlap(x, texts):
    count = len(texts)
    edges = np.zeros((count + len(x), count + len(x)))
    for row, image in enumerate(x):
        to_images = x @ image
        for near in np.argsort(-to_images, kind="stable")[:5]:
            edges[count + row, count + near] = max(to_images[near], 0)
        to_texts = texts @ image
        for near in np.argsort(-to_texts, kind="stable")[:5]:
            edges[count + row, near] = max(to_texts[near], 0) ** 5
    weights = edges + edges.T
    np.fill_diagonal(weights, 0)
    degrees = weights.sum(axis=1)
    degrees[degrees == 0] = 1
    weights /= np.sqrt(np.outer(degrees, degrees))
    identity = np.eye(len(weights))
    return np.linalg.solve(identity - 0.3 * weights, identity[:, :count])[count:]
