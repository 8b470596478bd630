"""Tasks: loaders against files written by hand and scikit-learn's own arrays, and what they refuse."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxrnn.checks import InputError
from jaxrnn.tasks import Batch, Examples, Task, digits, load_task, mnist, pixels, read_idx
from jaxrnn.tasks.images import image_classification
from jaxrnn.tasks.objectives import accuracy

_NAMES = {
    "train-images-idx3-ubyte": (40, 28, 28),
    "train-labels-idx1-ubyte": (40,),
    "t10k-images-idx3-ubyte": (10, 28, 28),
    "t10k-labels-idx1-ubyte": (10,),
}


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """A folder with four small IDX files, two of them compressed."""
    rng = np.random.default_rng(0)
    for i, (name, shape) in enumerate(_NAMES.items()):
        content = _idx(rng.integers(0, 10, shape).astype(np.uint8))
        if i % 2:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    return tmp_path


def test_digits_are_scikit_learns_pixels_in_reading_order():
    task = digits()
    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    parts = [task.train, task.valid, task.test]
    inputs = np.concatenate([part.inputs for part in parts])
    np.testing.assert_array_equal(inputs[:, :, 0] * 16, rows[order])
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts]), labels[order])
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert inputs[3, 8 * 2 + 5, 0] * 16 == rows[order[3], 8 * 2 + 5]


def test_no_sequence_is_in_two_parts_of_the_digits():
    task = digits()
    rows = [{row.tobytes() for row in part.inputs} for part in (task.train, task.valid, task.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_chance_is_the_commonest_class():
    inputs = np.zeros((4, 3, 1), np.float32)
    train = Examples(inputs, np.array([0, 1, 1, 2], np.int32))
    test = Examples(inputs, np.array([1, 2, 2, 2], np.int32))
    task = image_classification("toy", train=train, valid=train, test=test, source="")
    assert task.chance == 0.25


def test_loss_and_metric_against_numpy():
    task = digits()
    rng = np.random.default_rng(1)
    logits, labels = (
        rng.normal(size=(7, 10)).astype(np.float32),
        rng.integers(0, 10, 7).astype(np.int32),
    )
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    mask = np.arange(7) < 5
    batch = Batch(None, jnp.asarray(labels), jnp.asarray(mask))
    found = task.mean_loss(jnp.asarray(logits), batch)
    np.testing.assert_allclose(found, expected[:5].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        task.losses(jnp.asarray(logits), batch), np.where(mask, expected, 0), rtol=1e-5
    )
    sums = task.metric.count(jnp.asarray(logits), labels, mask)
    assert task.metric.value(np.asarray(sums)) == np.mean((logits.argmax(1) == labels)[:5])


def test_idx_values_and_shape_survive(tmp_path: Path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(_idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(_idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain"), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed.gz"), array)


def test_mnist_reads_plain_and_compressed_files(mnist_folder: Path):
    task = mnist(mnist_folder)
    assert (task.train.inputs.shape[1], task.in_features, task.outputs) == (784, 1, 10)
    assert [len(part) for part in (task.train, task.valid, task.test)] == [36, 4, 10]
    raw = read_idx(mnist_folder / "train-images-idx3-ubyte")
    np.testing.assert_array_equal(
        task.train.inputs[5, :, 0], raw[5].reshape(-1).astype(np.float32) / 255
    )


def test_mnist_is_found_below_the_environments_folder(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (mnist_folder.parent / "mnist").symlink_to(mnist_folder)
    monkeypatch.setenv("JAXRNN_DATA", str(mnist_folder.parent))
    assert len(load_task("mnist").test) == 10


def test_the_real_mnist_where_it_is_at_hand():
    root = os.environ.get("JAXRNN_DATA")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("JAXRNN_DATA does not point above mnist/ with the four IDX files of MNIST")
    task = mnist()
    assert [len(part) for part in (task.train, task.valid, task.test)] == [55_000, 5_000, 10_000]
    # Known of MNIST: the first training digits are 5, 0, 4, 1, 9, and the mean pixel is 0.1307.
    assert task.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(float(task.train.inputs.mean()) - 0.1307) < 5e-4


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _cut_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _not_idx(path: Path) -> None:
    path.write_bytes(b"hello, this is text")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", _truncate, r"train-images.*31355 bytes.*expected 31360"),
        ("train-labels-idx1-ubyte.gz", _cut_gzip, r"train-labels.*cannot be read"),
        ("t10k-images-idx3-ubyte", _not_idx, r"t10k-images.*beginning 68 65 6c 6c.*IDX"),
        ("t10k-labels-idx1-ubyte.gz", _empty, r"t10k-labels.*IDX"),
        ("t10k-labels-idx1-ubyte.gz", Path.unlink, r"neither .*t10k-labels.*nor .*the test labels"),
    ],
)
def test_a_damaged_file_is_named(mnist_folder: Path, name: str, damage, message: str):
    damage(mnist_folder / name)
    with pytest.raises(InputError, match=message):
        mnist(mnist_folder)


def test_no_folder_says_what_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAXRNN_DATA", raising=False)
    with pytest.raises(InputError, match=r"JAXRNN_DATA is not set.*train-images-idx3-ubyte"):
        mnist()


def test_unknown_task_suggests_the_nearest():
    with pytest.raises(InputError, match=r"task: got 'digit'.*did you mean 'digits'"):
        load_task("digit")


def test_labels_out_of_range_and_empty_parts_are_refused():
    good = Examples(np.zeros((2, 3, 1), np.float32), np.array([0, 1], np.int32))
    bad = Examples(np.zeros((2, 3, 1), np.float32), np.array([0, 7], np.int32))
    none = Examples(np.zeros((0, 3, 1), np.float32), np.zeros(0, np.int32))
    with pytest.raises(InputError, match=r"test targets: got values from 0 to 7.*0 to 1"):
        _toy(train=good, valid=good, test=bad)
    with pytest.raises(InputError, match=r"train: got no examples"):
        _toy(train=none, valid=good, test=good)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Examples(np.zeros((2, 3), np.float32), np.zeros(2, int)), r"inputs: got .*\[N, T, F\]"),
        (Examples(np.zeros((2, 3, 1)), np.zeros(3, int)), "2 sequences and 3 targets"),
        (Examples(np.zeros((2, 3, 2)), np.zeros(2, int)), "got 2 features a step; expected 1"),
        (Examples(np.full((2, 3, 1), np.nan), np.zeros(2, int)), "6 non-finite values"),
        (Examples(np.zeros((2, 3, 1)), np.zeros(2)), "targets: got .*expected integers"),
    ],
)
def test_examples_that_do_not_fit_are_refused(part: Examples, message: str):
    with pytest.raises(InputError, match=message):
        _toy(train=part, valid=part, test=part)


def test_a_task_is_on_numbers_or_on_tokens():
    part = Examples(np.zeros((2, 3, 1), np.float32), np.array([0, 1], np.int32))
    with pytest.raises(InputError, match="in_features=1 and tokens=5; expected one of the two"):
        _toy(train=part, valid=part, test=part, tokens=5)
    with pytest.raises(InputError, match="loss: got 'cross'"):
        _toy(train=part, valid=part, test=part, loss="cross")


def _toy(**changes) -> Task:
    about = {"name": "toy", "source": "", "answers": "sequence", "outputs": 2, "in_features": 1}
    judged = {"loss": "cross_entropy", "metric": accuracy, "chance": 0.5, "solved": 0.9}
    return Task(**{**about, **judged, **changes})


@pytest.mark.parametrize(("side", "steps"), [(14, 196), (7, 49)])
def test_smaller_images_are_the_means_of_their_pixels(mnist_folder: Path, side: int, steps: int):
    raw = read_idx(mnist_folder / "train-images-idx3-ubyte")
    task = mnist(mnist_folder, side=side)
    k = 28 // side
    found = task.train.inputs[2].reshape(side, side)
    assert task.train.inputs.shape[1] == steps
    np.testing.assert_allclose(found[3, 5], raw[2, 3 * k : 4 * k, 5 * k : 6 * k].mean() / 255)
    with pytest.raises(InputError, match="side: got 10; expected a divisor of 28"):
        mnist(mnist_folder, side=10)


def test_permuted_pixels_are_the_same_ones_in_one_order_for_all(mnist_folder: Path):
    plain, permuted = mnist(mnist_folder), mnist(mnist_folder, permuted=True)
    order = np.random.default_rng(0).permutation(784)
    for part in ("train", "valid", "test"):
        inputs = getattr(plain, part).inputs[:, order]
        np.testing.assert_array_equal(inputs, getattr(permuted, part).inputs)


def test_images_without_their_labels_are_refused():
    with pytest.raises(InputError, match="3 images and 2 labels"):
        pixels(np.zeros((3, 2, 2)), np.zeros(2), scale=1)
