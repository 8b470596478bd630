"""Images read one pixel at a time: the classifier sees the first pixel hundreds of steps before it answers.

Le, Jaitly & Hinton 2015 made it a benchmark: 28×28 MNIST digits in reading order are 784 steps of one
number, and most of the evidence lies far back. scikit-learn's bundled 8×8 digits are the same task in 64
steps, on real data that every installation has.
"""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Num

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.examples import Examples
from jaxrnn.tasks.files import find_files
from jaxrnn.tasks.idx import read_idx
from jaxrnn.tasks.objectives import accuracy

_MNIST_FILES = {
    "the train images as an IDX file of bytes": "train-images-idx3-ubyte",
    "the train labels as an IDX file of bytes": "train-labels-idx1-ubyte",
    "the test images as an IDX file of bytes": "t10k-images-idx3-ubyte",
    "the test labels as an IDX file of bytes": "t10k-labels-idx1-ubyte",
}
_MNIST_VALID = 5_000


def digits() -> Task:
    """Return scikit-learn's 1,797 handwritten digits of 8×8 pixels as sequences of 64 steps.

    70 % are for training, 10 % for validation, 20 % for the test, after a shuffle that is always the same.
    Values are scaled to 0 … 1.

    Raises:
      InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        checks.refuse(
            "digits", "no scikit-learn", "pip install scikit-learn, or jaxrnn with its extra `data`"
        )
    # As arrays: by scikit-learn's annotations they might be of pandas.
    rows, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = rows[order], labels[order]
    first, second = int(0.7 * len(labels)), int(0.8 * len(labels))
    return image_classification(
        "digits",
        train=pixels(images[:first], labels[:first], scale=16),
        valid=pixels(images[first:second], labels[first:second], scale=16),
        test=pixels(images[second:], labels[second:], scale=16),
        source="UCI optical recognition of handwritten digits (Alpaydin & Kaynak 1998), by scikit-learn",
    )


@checked
def mnist(
    folder: str | os.PathLike[str] | None = None, side: int = 28, permuted: bool = False
) -> Task:
    """Return MNIST as sequences of 784 steps: 55,000 to train, 5,000 to validate, 10,000 to test.

    Args:
      folder: where the four IDX files lie, as ``.gz`` or unpacked; by default ``$JAXRNN_DATA/mnist``.
      side: pixels of a row; 14 takes the mean of each 2×2, a proxy of a quarter of the steps.
      permuted: read the pixels in one random order, the same for all images, which leaves no neighbours.

    Raises:
      InputError: a file is missing, truncated or not what its name says, or a side does not divide 28.
    """
    found = find_files("mnist", folder, _MNIST_FILES)
    images, labels, test_images, test_labels = (read_idx(path) for path in found.values())
    for name, array, ndim in (
        ("train images", images, 3),
        ("train labels", labels, 1),
        ("test images", test_images, 3),
        ("test labels", test_labels, 1),
    ):
        if array.ndim != ndim or not array.size:
            checks.refuse(
                f"mnist {name}", checks.describe(array), f"{ndim} axes, none of them empty"
            )
    for name, array in (("train images", images), ("test images", test_images)):
        if array.shape[1] != array.shape[2] or array.shape[1:] != images.shape[1:]:
            expected = "squares of one size in training and test"
            checks.refuse(f"mnist {name}", checks.describe(array), expected)
    if len(images) < 2:
        checks.refuse(
            "mnist train images", checks.describe(images), "one to train and one to validate"
        )
    images, test_images = (_prepared(each, side, permuted) for each in (images, test_images))
    held = min(_MNIST_VALID, max(len(images) // 10, 1))
    return image_classification(
        "mnist",
        train=pixels(images[:-held], labels[:-held], scale=255),
        valid=pixels(images[-held:], labels[-held:], scale=255),
        test=pixels(test_images, test_labels, scale=255),
        source="MNIST (LeCun et al. 1998)",
    )


def _prepared(
    images: Num[np.ndarray, "N R C"], side: int, permuted: bool
) -> Num[np.ndarray, "N S S"]:
    """Return images shrunk to a side of so many pixels, those in another order where it is asked for."""
    checks.count("side", side)
    factor, rest = divmod(images.shape[1], side)
    if rest or not factor:
        checks.refuse("side", side, f"a divisor of {images.shape[1]}")
    blocks = images.reshape(len(images), side, factor, side, factor)
    small = images if factor == 1 else blocks.mean(axis=(2, 4), dtype=np.float32)
    if not permuted:
        return small
    order = np.random.default_rng(0).permutation(side * side)
    return small.reshape(len(images), -1)[:, order].reshape(small.shape)


def image_classification(
    name: str, *, train: Examples, valid: Examples, test: Examples, source: str
) -> Task:
    """Return the task of naming one of ten digits after the last pixel.

    Chance is the test accuracy of always naming the commonest class of the training data.
    """
    commonest = np.bincount(train.targets).argmax()
    return Task(
        name=name,
        source=source,
        train=train,
        valid=valid,
        test=test,
        answers="sequence",
        outputs=10,
        in_features=1,
        loss="cross_entropy",
        metric=accuracy,
        chance=float(np.mean(test.targets == commonest)),
        solved=0.95,
    )


@checked
def pixels(
    images: Num[np.ndarray, "N ..."], labels: Num[np.ndarray, "M"], scale: float
) -> Examples:
    """Read images row by row, one pixel a step, divided by `scale`."""
    if len(images) != len(labels):
        checks.refuse("images", f"{len(images)} images and {len(labels)} labels", "as many of each")
    steps = images.reshape(len(images), -1, 1).astype(np.float32)
    return Examples(steps / np.float32(scale), labels.astype(np.int32))
