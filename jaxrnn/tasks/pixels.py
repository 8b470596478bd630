"""Images read one pixel at a time: the classifier sees the first pixel hundreds of steps before it answers.

Le, Jaitly & Hinton 2015 made it a benchmark: 28×28 MNIST digits in reading order are 784 steps of one
number, and most of the evidence lies far back. scikit-learn's bundled 8×8 digits are the same task in 64
steps, on real data that every installation has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Num

from jaxrnn import checks
from jaxrnn.tasks.base import SequenceClassification, Split
from jaxrnn.tasks.idx import read_idx

_MNIST_FILES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
_MNIST_VALID = 5_000


def digits(folder: str | os.PathLike[str] | None = None) -> SequenceClassification:
    """Return scikit-learn's 1,797 handwritten digits of 8×8 pixels as sequences of 64 steps.

    70 % are for training, 10 % for validation, 20 % for the test, after a shuffle that is always the same.
    Values are scaled to 0 … 1.

    Args:
      folder: not used; the data come with scikit-learn.

    Raises:
      InputError: scikit-learn is not installed.
    """
    del folder
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        checks.refuse("digits", "no scikit-learn", "pip install 'jaxrnn[data]', which brings it")
    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = rows[order], labels[order]
    first, second = int(0.7 * len(labels)), int(0.8 * len(labels))
    return SequenceClassification(
        name="digits",
        train=pixels(images[:first], labels[:first], scale=16),
        valid=pixels(images[first:second], labels[first:second], scale=16),
        test=pixels(images[second:], labels[second:], scale=16),
        classes=10,
        solved=0.95,
        source="UCI optical recognition of handwritten digits (Alpaydin & Kaynak 1998), by scikit-learn",
    )


def mnist(folder: str | os.PathLike[str] | None = None) -> SequenceClassification:
    """Return MNIST as sequences of 784 steps: 55,000 to train, 5,000 to validate, 10,000 to test.

    Args:
      folder: where the four IDX files lie, as ``.gz`` or unpacked; by default ``$JAXRNN_DATA/mnist``.

    Raises:
      InputError: a file is missing, truncated or not what its name says.
    """
    parts = {what: read_idx(path) for what, path in _find_mnist(folder).items()}
    for what, ndim in {"images": 3, "labels": 1}.items():
        for half in ("train", "test"):
            array = parts[f"{half} {what}"]
            if array.ndim != ndim:
                checks.refuse(f"mnist {half} {what}", checks.describe(array), f"{ndim} axes")
    images, labels = parts["train images"], parts["train labels"]
    held = min(_MNIST_VALID, max(len(images) // 10, 1))
    return SequenceClassification(
        name="mnist",
        train=pixels(images[:-held], labels[:-held], scale=255),
        valid=pixels(images[-held:], labels[-held:], scale=255),
        test=pixels(parts["test images"], parts["test labels"], scale=255),
        classes=10,
        solved=0.95,
        source="MNIST (LeCun et al. 1998)",
    )


def pixels(images: Num[np.ndarray, "N ..."], labels: Num[np.ndarray, "M"], scale: float) -> Split:
    """Read images row by row, one pixel a step, divided by `scale`."""
    if len(images) != len(labels):
        checks.refuse("images", f"{len(images)} images and {len(labels)} labels", "as many of each")
    steps = images.reshape(len(images), -1, 1).astype(np.float32)
    return Split(inputs=steps / np.float32(scale), labels=labels.astype(np.int32))


def _find_mnist(folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    if folder is None:
        root = os.environ.get("JAXRNN_DATA")
        if not root:
            checks.refuse(
                "mnist",
                "no folder, and JAXRNN_DATA is not set",
                f"a folder with {', '.join(_MNIST_FILES.values())} (.gz or not), or JAXRNN_DATA above mnist/",
            )
        folder = Path(root) / "mnist"
    found = {}
    for what, name in _MNIST_FILES.items():
        candidates = [Path(folder) / name, Path(folder) / f"{name}.gz"]
        there = [path for path in candidates if path.is_file()]
        if not there:
            looked = " nor ".join(map(str, candidates))
            checks.refuse("mnist", f"neither {looked}", f"the {what} as an IDX file of bytes")
        found[what] = there[0]
    return found


TASKS: dict[str, Callable[[str | os.PathLike[str] | None], SequenceClassification]] = {
    "digits": digits,
    "mnist": mnist,
}


def load_task(name: str, folder: str | os.PathLike[str] | None = None) -> SequenceClassification:
    """Load a task by its name.

    Raises:
      InputError: no such task, or its data are missing or damaged.

    Example:
      >>> import jaxrnn
      >>> task = jaxrnn.tasks.load_task("digits")
      >>> task.length, task.in_features, len(task.test)
      (64, 1, 360)
    """
    checks.choice("task", name, TASKS)
    return TASKS[name](folder)
