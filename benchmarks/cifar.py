"""CIFAR-10 in NumPy, for the processes of every library alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

IMAGES = Path("/tmp/cifar10.npz")
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


class Images(NamedTuple):
    """CIFAR-10: images as stored, uint8 ``(n, 32, 32, 3)``, and labels ``(n,)``."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_images(path: Path = IMAGES) -> Images:
    with np.load(path) as file:
        return Images(*(file[name] for name in Images._fields))


def normalise(images: np.ndarray) -> np.ndarray:
    """Pixels as the networks read them."""
    return (images.astype("float32") / 255 - MEAN) / STD


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random crop out of the image with four black pixels around it, and random flip.

    On pixels as stored: padded after normalisation, the border would not be black.
    """
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    top, left = rng.integers(0, 9, (2, len(images), 1))
    rows, columns = top + np.arange(32), left + np.arange(32)
    flip = rng.random(len(images)) < 0.5
    columns[flip] = columns[flip, ::-1]
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def augmented_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in random order, augmented and normalised."""
    order = rng.permutation(len(images))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield normalise(augment(images[part], rng)), labels[part]


def mixed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every image with a part of another one of the batch, mixup (Zhang et al., ICLR 2018).

    The part is uniform in [0, 1/2], so that every image is at least half itself.
    """
    part = rng.uniform(0, 0.5, (len(images), 1, 1, 1)).astype("float32")
    return (1 - part) * images + part * images[rng.permutation(len(images))]
