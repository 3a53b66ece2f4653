"""Labelled images for the example: bundled digits, Keras' data sets, or an .npz file.

Whatever the source, the images come out as float32 in 0..1 with shape (n, height, width,
channels) and in three parts. Training images fit the weights, validation images (taken from the
training images) show how training and pruning go, and test images are for the final table only.
"""

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
DATASETS = ("digits", "cifar10", "fashion_mnist", "mnist")
SMALLEST_IMAGE = 8
SAVE_ADVICE = "Save it with np.savez(path, x_train=…, y_train=…, x_test=…, y_test=…)."

Part = tuple[np.ndarray, np.ndarray]


class DataError(ValueError):
    """The data cannot be used; the message says why and how to mend it."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels in three parts; each part is a pair (images, labels)."""

    name: str
    train: Part
    validation: Part
    test: Part

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train[0].shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """The number of classes; labels run from 0 to one less."""
        return 1 + int(max(labels.max() for _, labels in (self.train, self.validation, self.test)))

    def __str__(self) -> str:
        height, width, channels = self.input_shape
        counts = [len(labels) for _, labels in (self.train, self.validation, self.test)]
        return (
            f"{self.name}: {height}×{width}×{channels} images of {self.classes} classes; "
            "{} for training, {} for validation, {} for the test".format(*counts)
        )


class ShiftedImages(keras.utils.PyDataset):
    """Batches of training images, each image shifted at random by up to an eighth of its size.

    Without it a small network knows a small training set by heart, and fine-tuning has nothing
    left to learn from after pruning. (For 32×32 images: the usual 4 pixels of padding and crop.)

    Args:
        part: Images and labels.
        batch_size: Images per batch; the last batch may be smaller.
        seed: Seed of the order and the shifts.
    """

    def __init__(self, part: Part, batch_size: int, seed: int):
        super().__init__()
        self.images, self.labels = part
        self.batch_size = batch_size
        self.random = np.random.default_rng(seed)
        self.size = np.array(self.images.shape[1:3])
        self.reach = self.size // 8
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def on_epoch_end(self) -> None:
        """Draws the order and the shifts of the next epoch."""
        self.order = self.random.permutation(len(self.labels))
        self.shifts = self.random.integers(0, 2 * self.reach + 1, (len(self.labels), 2))

    def __getitem__(self, index: int) -> Part:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        down, right = self.reach
        padded = np.pad(self.images[chosen], ((0, 0), (down, down), (right, right), (0, 0)))
        crops = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(1, 2))
        shifted = crops[np.arange(len(chosen)), *self.shifts[chosen].T]
        return np.moveaxis(shifted, 1, -1), self.labels[chosen]


def load(name: str, file: Path | None = None, limit: int | None = None, seed: int = 0) -> Dataset:
    """Loads images and splits them.

    Args:
        name: One of `DATASETS`; not looked at where `file` is given.
        file: An .npz file with the arrays x_train, y_train, x_test and y_test.
        limit: Use only so many training images, the first ones.
        seed: Seed of the random splits.

    Returns:
        The data in three parts.

    Raises:
        DataError: The file, the download or the images cannot be used.
    """
    if file is not None:
        name, (train, test) = file.name, _read_npz(file)
    elif name == "digits":
        train, test = _digits(seed)
    else:
        train, test = _download(name)
    train = train[0][:limit], train[1][:limit]
    # Digits are so few that a tenth of them would make a very coarse ruler.
    train, validation = _split(train, fraction=0.2 if name == "digits" else 0.1, seed=seed)
    return Dataset(name, _scale(train), _scale(validation), _scale(test))


def _digits(seed: int) -> tuple[Part, Part]:
    """The 1797 handwritten digits that come with scikit-learn; a quarter is for the test."""
    images, labels = load_digits(return_X_y=True)
    # Their pixels are 0..16; bring them to the 0..255 of every other source.
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _split((pixels, labels), fraction=0.25, seed=seed)


def _download(name: str) -> tuple[Part, Part]:
    try:
        arrays = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras lets urllib's, the hash check's and the disk's errors pass.
        raise DataError(
            f"The data set {name!r} could not be downloaded: {error}. Expected: a network "
            "connection, or a copy in ~/.keras/datasets. To work without a network, use "
            "--dataset digits, or --data with an .npz file."
        ) from error
    return _checked(dict(zip(ARRAYS, (*arrays[0], *arrays[1]), strict=True)), name)


def _read_npz(file: Path) -> tuple[Part, Part]:
    if not file.is_file():
        raise DataError(
            f"There is no data file {str(file)!r}. Expected: the path of an .npz file with the "
            f"arrays {', '.join(ARRAYS)}. Check the path given to --data."
        )
    if not zipfile.is_zipfile(file):
        raise DataError(
            f"The data file {str(file)!r} is not an .npz archive. Expected: one with the arrays "
            f"{', '.join(ARRAYS)}; received: something else, or half a file. {SAVE_ADVICE}"
        )
    with np.load(file, allow_pickle=False) as archive:
        _require_arrays(set(archive.files), file)
        arrays = {name: _read_array(archive, name, file) for name in ARRAYS}
    return _checked(arrays, str(file))


def _read_array(archive: np.lib.npyio.NpzFile, name: str, file: Path) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{name} of the data file {str(file)!r} could not be read: {error}. Expected: a plain "
            f"array. {SAVE_ADVICE}"
        ) from error


def _require_arrays(received: set[str], file: Path) -> None:
    missing = [name for name in ARRAYS if name not in received]
    if missing:
        raise DataError(
            f"The data file {str(file)!r} has no {' and no '.join(missing)}. Expected the arrays "
            f"{', '.join(ARRAYS)}; received {', '.join(sorted(received)) or 'none'}. {SAVE_ADVICE}"
        )


def _checked(arrays: dict[str, np.ndarray], source: str) -> tuple[Part, Part]:
    """Brings images to NHWC and labels to one axis, or says what is wrong with them."""
    train = _checked_part(arrays, "train", source)
    test = _checked_part(arrays, "test", source)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"The training and test images of {source} differ in shape. Expected the same; "
            f"received {train[0].shape[1:]} in x_train and {test[0].shape[1:]} in x_test. "
            "Resize the one to the other."
        )
    return train, test


def _checked_part(arrays: dict[str, np.ndarray], part: str, source: str) -> Part:
    images = _checked_images(arrays[f"x_{part}"], f"x_{part}", source)
    labels = _checked_labels(arrays[f"y_{part}"], f"y_{part}", source)
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"x_{part} and y_{part} of {source} do not belong together. Expected as many labels "
            f"as images and at least one; received {len(images)} images and {len(labels)} labels."
            " Save both from the same selection."
        )
    return images, labels


def _checked_images(images: np.ndarray, name: str, source: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.dtype != np.uint8 or min(images.shape[1:3]) < SMALLEST_IMAGE:
        raise DataError(
            f"{name} of {source} does not hold usable images. Expected uint8 pixels (0..255) of "
            f"shape (images, height, width[, channels]), at least {SMALLEST_IMAGE}×"
            f"{SMALLEST_IMAGE}; received {images.dtype} of shape {images.shape}. Scale other "
            "pixels to 0..255, then use .astype(np.uint8); put channels last with "
            "np.moveaxis(x, 1, -1)."
        )
    return images


def _checked_labels(labels: np.ndarray, name: str, source: str) -> np.ndarray:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    numbers = flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer)
    if not numbers or (flat.size and flat.min() < 0):
        smallest = f", the smallest {flat.min()}" if numbers else ""
        raise DataError(
            f"{name} of {source} does not hold class numbers. Expected integers from 0 on, of "
            f"shape (images,) or (images, 1); received {labels.dtype} of shape {labels.shape}"
            f"{smallest}. Turn one-hot rows into numbers with y.argmax(-1), names with "
            "np.unique(names, return_inverse=True)[1]."
        )
    return flat.astype(np.int64)


def _split(part: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """Splits off a fraction at random, with the same share of every class."""
    images, labels = part
    try:
        rest, held_out = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(
            f"{len(labels)} training images are too few to hold out {fraction:.0%} of every "
            f"class for validation: {error} Give more images, or raise --train-limit."
        ) from error
    return (images[rest], labels[rest]), (images[held_out], labels[held_out])


def _scale(part: Part) -> Part:
    images, labels = part
    return images.astype(np.float32) / 255, labels
