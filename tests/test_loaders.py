"""Loaders of text, music and translations: small files written by hand, and the real ones where they are."""

from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from jaxrnn.checks import InputError
from jaxrnn.tasks import Batch, LanguageModelling, Text, Translation, load_task
from jaxrnn.tasks.idx import read_idx
from jaxrnn.tasks.language import characters, shakespeare, words
from jaxrnn.tasks.piano_rolls import jsb_chorales
from jaxrnn.tasks.sentences import SentenceTask, read_conll, sentiment, wnut17
from jaxrnn.tasks.translation import multi30k


def whole(source) -> list[Batch]:
    return list(source.batches(8))


def sentences(source) -> list[tuple[list[int], list[int] | int]]:
    """Every sequence without its padding, with its answers."""
    found = []
    for batch in whole(source):
        for b in range(len(batch.lengths)):
            inputs = batch.inputs[: batch.lengths[b], b].tolist()
            if batch.mask.ndim == 1 and batch.mask[b]:
                found.append((inputs, int(batch.targets[b])))
            elif batch.mask.ndim == 2 and batch.mask[:, b].any():
                found.append((inputs, batch.targets[batch.mask[:, b], b].tolist()))
    return found


# Text.


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("abcd efgh. " * 200, "utf-8")
    return path


def test_characters_read_a_text_from_end_to_end(text: Path):
    task = characters(text, window=20)
    assert isinstance(task, LanguageModelling)
    assert isinstance(task.train, Text)
    assert task.decode(task.train.tokens[:22]) == "abcd efgh. abcd efgh. "
    assert task.encode("bad").tolist() == [task.vocabulary.words.index(c) for c in "bad"]
    sizes = [len(part.tokens) for part in (task.train, task.valid, task.test)]  # pyright: ignore[reportAttributeAccessIssue]
    assert sizes == [1980, 110, 110]


def test_chance_of_a_text_is_the_entropy_of_its_letters(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("ab" * 40_000, "utf-8")
    assert characters(path).chance == pytest.approx(1, abs=1e-3)
    path.write_text("a b " * 40_000, "utf-8")
    assert words(path).chance == pytest.approx(2, abs=1e-3)


def test_words_are_lower_case_and_lines_have_an_end(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("The cat\nsat on a mat .\n" * 100, "utf-8")
    task = words(path, window=5, largest=4)
    assert isinstance(task, LanguageModelling)
    assert set(task.vocabulary.words) == {"<pad>", "<unk>", "<eol>", ".", "a", "cat"}
    assert task.decode(task.train.tokens[:5]) == "<unk> cat <eol> <unk> <unk>"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_text_of_every_installation_is_pythons_documentation():
    task = load_task("characters")
    assert isinstance(task, LanguageModelling)
    tokens = task.train.tokens  # pyright: ignore[reportAttributeAccessIssue]
    assert 400_000 < len(tokens) / 0.9 < 600_000
    assert "assert" in task.decode(tokens[:2_000])
    assert 4 < task.chance < 5


def test_a_folder_is_refused_where_none_is_read():
    with pytest.raises(
        InputError, match=r"data: got my\.txt; expected none.*given as the setting file"
    ):
        load_task("characters", "my.txt")
    with pytest.raises(InputError, match="data: got x; expected none, for adding reads no folder"):
        load_task("adding", "x")


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path):
    path = tmp_path / "text.txt"
    with pytest.raises(InputError, match=r"text.txt: got a file that cannot be read"):
        characters(path)
    path.write_bytes(b"abc\xff" * 100)
    with pytest.raises(InputError, match=r"bytes that are not utf-8 .* at 3"):
        characters(path)
    path.write_text("short")
    with pytest.raises(
        InputError, match=r"characters: train: got 4 tokens; expected more than one window"
    ):
        characters(path)
    with pytest.raises(
        InputError, match=r"shakespeare: got neither .*input.txt nor .*input.txt.gz"
    ):
        shakespeare(tmp_path)


# Sentiment.


def test_sentiment_reads_sentences_and_their_sides(tmp_path: Path):
    lines = [f"{i % 2} film {'good' if i % 2 else 'bad'} n{i} caf\xe9\x85." for i in range(40)]
    (tmp_path / "rt-polarity.all").write_bytes("\n".join(lines).encode("latin-1"))
    task = sentiment(tmp_path)
    assert isinstance(task, SentenceTask)
    assert [len(part) for part in (task.train, task.valid, task.test)] == [32, 4, 4]
    assert set(task.vocabulary.words) == {"<pad>", "<unk>", "film", "good", "bad", "caf\xe9", "."}
    for part in (task.train, task.valid, task.test):
        for inputs, label in sentences(part):
            assert isinstance(label, int)
            read = task.vocabulary.decode(inputs)
            assert read == ["film", ("bad", "good")[label], "<unk>", "caf\xe9", "."]
            assert task.labels[label] == ("against", "for")[label]


def test_a_line_without_its_label_is_named(tmp_path: Path):
    (tmp_path / "rt-polarity.all").write_text("1 good\n2 odd\n")
    with pytest.raises(InputError, match=r"rt-polarity.all, line 2: got '2 odd'; expected 0 or 1"):
        sentiment(tmp_path)
    (tmp_path / "rt-polarity.all").write_text("1 good\n0 \n")
    with pytest.raises(InputError, match="line 2: got '0 '; expected 0 or 1, a blank, and a sent"):
        sentiment(tmp_path)


# Entities.

_CONLL = "The\tO\nRed\tB-group\nSox\tI-group\n\nhi\tO\n\t\n\nParis\tB-place"


def test_conll_columns_are_sentences_of_words_and_tags(tmp_path: Path):
    path = tmp_path / "file.conll"
    path.write_text(_CONLL)
    assert read_conll(path) == [
        (["The", "Red", "Sox"], ["O", "B-group", "I-group"]),
        (["hi"], ["O"]),
        (["Paris"], ["B-place"]),
    ]
    path.write_text("The O\nRed B-group\n")
    assert read_conll(path) == [(["The", "Red"], ["O", "B-group"])]
    path.write_text("The\tO\nRed\n")
    with pytest.raises(
        InputError, match=r"file.conll, line 2: got 'Red'; expected a word and its tag"
    ):
        read_conll(path)


def test_entities_are_tagged_step_by_step(tmp_path: Path):
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        (tmp_path / name).write_text(_CONLL)
    task = wnut17(tmp_path, least=1)
    assert isinstance(task, SentenceTask)
    assert task.labels == ("O", "B-group", "B-place", "I-group")
    found = {
        tuple(task.vocabulary.decode(inputs)): [task.labels[i] for i in tags]  # pyright: ignore[reportGeneralTypeIssues]
        for inputs, tags in sentences(task.test)
    }
    assert found[("The", "Red", "Sox")] == ["O", "B-group", "I-group"]
    assert len(found) == 3
    (tmp_path / "emerging.test.annotated").write_text("The\tO\nBig\tB-group\n9\tO\n")
    rare = wnut17(tmp_path, least=2)  # nothing comes twice but the shapes of names
    assert isinstance(rare, SentenceTask)
    assert rare.vocabulary.words == ("<pad>", "<unk>", "<Xx>")
    ((inputs, _),) = sentences(rare.test)
    assert rare.vocabulary.decode(inputs) == ["<Xx>", "<Xx>", "<unk>"]
    np.testing.assert_array_equal(rare.encode(["The", "Big", "9"]), inputs)
    (tmp_path / "emerging.dev.conll").write_text("x\tB-new\n")
    with pytest.raises(InputError, match="wnut17: valid: got the tag B-new; expected one of O, "):
        wnut17(tmp_path)


# Music.


def _mat(path: Path, **changes) -> None:
    rng = np.random.default_rng(0)

    def pieces(count: int) -> np.ndarray:
        cells = np.empty((1, count), object)
        for i in range(count):
            cells[0, i] = (rng.uniform(size=(3 + i % 4, 88)) < 0.1).astype(np.uint8)
        return cells

    parts = {"traindata": pieces(9), "validdata": pieces(3), "testdata": pieces(4), **changes}
    scipy.io.savemat(path, {name: part for name, part in parts.items() if part is not None})


def test_chorales_foretell_each_chord_from_those_before(tmp_path: Path):
    _mat(tmp_path / "JSB_Chorales.mat")
    task = jsb_chorales(tmp_path)
    pieces = scipy.io.loadmat(tmp_path / "JSB_Chorales.mat")["testdata"][0]
    found = []
    for batch in whole(task.test):
        for b in range(8):
            n = int(batch.mask[:, b].sum())
            if n:
                assert (batch.inputs[0, b] == 0).all()
                np.testing.assert_array_equal(batch.inputs[1:n, b], batch.targets[: n - 1, b])
                found.append(batch.targets[:n, b].tobytes())
    assert sorted(found) == sorted(piece.astype(np.float32).tobytes() for piece in pieces)
    often = np.concatenate([*scipy.io.loadmat(tmp_path / "JSB_Chorales.mat")["traindata"][0]]).mean(
        0
    )
    p, asked = often.clip(1e-4), np.concatenate([*pieces])
    expected = -(asked * np.log(p) + (1 - asked) * np.log(1 - p)).sum(-1).mean()
    assert task.chance == pytest.approx(expected, rel=1e-5)


def test_what_is_no_piano_roll_is_refused(tmp_path: Path):
    path = tmp_path / "JSB_Chorales.mat"
    with pytest.raises(InputError, match=r"jsb: got neither .*JSB_Chorales.mat"):
        jsb_chorales(tmp_path)
    path.write_bytes(b"no matlab")
    with pytest.raises(InputError, match="a file that cannot be read"):
        jsb_chorales(tmp_path)
    _mat(path, testdata=None)
    with pytest.raises(InputError, match="got no testdata"):
        jsb_chorales(tmp_path)
    odd = np.empty((1, 1), object)
    odd[0, 0] = np.zeros((4, 87))
    _mat(path, validdata=odd)
    with pytest.raises(InputError, match=r"validdata\[0\] of float64\[4, 87\]"):
        jsb_chorales(tmp_path)
    for wrong in (np.full((4, 88), 2), np.full((4, 88), 1 + 1j)):
        odd[0, 0] = wrong
        _mat(path, validdata=odd)
        with pytest.raises(InputError, match="values beside 0 and 1"):
            jsb_chorales(tmp_path)


def test_chance_is_finite_where_a_key_always_sounds(tmp_path: Path):
    always = np.empty((1, 2), object)
    for i in range(2):
        always[0, i] = np.eye(88)[[3, 3, 3]]
    _mat(tmp_path / "JSB_Chorales.mat", traindata=always, testdata=always)
    # All 88 keys are as certain as they may be.
    expected = -88 * np.log(1 - 1e-4)
    assert jsb_chorales(tmp_path).chance == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("place", "bit"), [(557, 0), (240, 6)])
def test_a_damaged_piano_roll_does_not_end_the_process(place: int, bit: int, tmp_path: Path):
    """Either flip makes SciPy's reader, in this process, end in a segmentation fault."""
    cells = np.empty((1, 2), object)
    for i in range(2):
        cells[0, i] = np.zeros((3, 88), np.uint8)
    path = tmp_path / "JSB_Chorales.mat"
    scipy.io.savemat(path, dict.fromkeys(("traindata", "validdata", "testdata"), cells))
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"JSB_Chorales\.mat: got"):
        jsb_chorales(tmp_path)


# What may be read at all.


def test_a_small_file_does_not_unpack_to_an_immense_one(tmp_path: Path):
    path = tmp_path / "text.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(80):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="unpacks to more than 67,108,864 bytes"):
        characters(path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_regular_files_are_read(make, tmp_path: Path):
    make(tmp_path / "text")
    with pytest.raises(InputError, match=r"a file that cannot be read \(.*(regular|directory)"):
        characters(tmp_path / "text")


def _idx(path: Path, shape: tuple[int, ...], content: bytes) -> Path:
    path.write_bytes(
        gzip.compress(struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content)
    )
    return path


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((2, 3), 5, "5 bytes of values; expected 6"),
        ((2, 3), 2**26, "more bytes of values; expected 6"),
        ((2**32 - 1,) * 2, 9, "the declared shape .*fewer than"),
        ((2**20, 2**10), 9, "9 bytes of values; expected 1073741824"),
        ((1,) * 9, 1, "9 axes; expected 1 to 8"),
        ((), 1, "0 axes; expected 1 to 8"),
    ],
)
def test_an_idx_file_is_read_as_far_as_its_header_says(shape, size, message, tmp_path: Path):
    path = _idx(tmp_path / "images.gz", shape, bytes(size))
    with pytest.raises(InputError, match=message):
        read_idx(path)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((4, 8, 6), (4, 8, 6), r"train images: got uint8\[4, 8, 6\]; expected squares"),
        ((4, 8, 8), (4, 6, 6), r"test images: got uint8\[4, 6, 6\]; expected squares"),
        ((0, 8, 8), (4, 8, 8), r"train images: got uint8\[0, 8, 8\]; expected 3 axes, none"),
        ((1, 8, 8), (4, 8, 8), r"train images: got uint8\[1, 8, 8\]; expected one to train"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(train, test, message, tmp_path: Path):
    for name, shape in (("train", train), ("t10k", test)):
        _idx(tmp_path / f"{name}-images-idx3-ubyte", shape, bytes(math.prod(shape)))
        _idx(tmp_path / f"{name}-labels-idx1-ubyte", shape[:1], bytes(shape[0]))
    with pytest.raises(InputError, match=message):
        load_task("mnist", tmp_path, side=2)


# Translation.


@pytest.fixture
def parallel_files(tmp_path: Path) -> Path:
    pairs = [("ein hund .", "a dog ."), ("zwei katzen schlafen", "two cats sleep soundly")] * 6
    for part in ("train", "val", "test2016"):
        for side, code in enumerate(("de", "en")):
            text = "\n".join(pair[side] for pair in pairs) + "\n"
            (tmp_path / f"{part}.{code}.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_translations_end_and_are_masked_by_their_own_length(parallel_files: Path):
    task = multi30k(parallel_files)
    assert isinstance(task, Translation)
    read, written = task.source_vocabulary, task.target_vocabulary
    found = {
        " ".join(read.decode(inputs)): " ".join(written.decode(answer))  # pyright: ignore[reportArgumentType]
        for inputs, answer in sentences(task.test)
    }
    assert found == {
        "ein hund .": "a dog . <end>",
        "zwei katzen schlafen": "two cats sleep soundly <end>",
    }
    assert written.words[task.end] == "<end>"
    assert 1 < task.chance < len(written)


def test_sides_of_other_lengths_are_refused(parallel_files: Path):
    (parallel_files / "val.en.gz").write_bytes(gzip.compress(b"one line\n"))
    with pytest.raises(InputError, match=r"val.de.gz: got 12 lines, and 1 in .*val.en.gz"):
        multi30k(parallel_files)


def test_a_length_that_leaves_nothing_is_refused(parallel_files: Path):
    with pytest.raises(InputError, match="longest: got 1; expected a number that leaves pairs"):
        multi30k(parallel_files, longest=1)


# The real files.


def _real(name: str) -> str:
    root = os.environ.get("JAXRNN_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"JAXRNN_DATA does not point above {name}/")
    return root


def test_the_real_chorales():
    _real("jsb")
    task = load_task("jsb-chorales")
    assert [len(part) for part in (task.train, task.valid, task.test)] == [229, 76, 77]
    assert 10 < task.chance < 13


def test_the_real_shakespeare():
    _real("shakespeare")
    task = load_task("shakespeare")
    assert isinstance(task, LanguageModelling)
    tokens = [len(part.tokens) for part in (task.train, task.valid, task.test)]  # pyright: ignore[reportAttributeAccessIssue]
    assert sum(tokens) == 1_115_394
    assert len(task.vocabulary) == 65 + 2


def test_the_real_reviews_and_messages():
    _real("sentiment")
    task = load_task("sentiment")
    assert sum(len(part) for part in (task.train, task.valid, task.test)) == 10_662
    _real("wnut17")
    tagged = load_task("wnut17")
    assert [len(p) for p in (tagged.train, tagged.valid, tagged.test)] == [3_394, 1_009, 1_287]
    assert tagged.outputs == 13


def test_the_real_translations():
    _real("multi30k")
    task = load_task("multi30k")
    assert isinstance(task, Translation)
    assert [len(part) for part in (task.valid, task.test)] == [1_014, 1_000]
    assert 28_500 < len(task.train) <= 29_000
    assert math.isfinite(task.chance)
