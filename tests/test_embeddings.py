"""Vocabularies, word vectors on disk, and skip-gram with negative sampling."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import InputError
from jaxrnn.models import (
    Embedding,
    SkipGram,
    WordVectors,
    read_glove,
    read_word2vec,
    skip_gram,
    train_skip_gram,
    write_glove,
    write_word2vec,
)
from jaxrnn.models.skip_gram import Tables, skip_gram_loss, window_pairs
from jaxrnn.tasks import Vocabulary

# Vocabulary.


def test_words_are_numbered_by_how_often_they_come():
    text = [*"bacabd", "<unk>", "<unk>", "<unk>", "<pad>"]
    assert Vocabulary.of(text).words == ("<pad>", "<unk>", "a", "b", "c", "d")
    assert Vocabulary.of(text, least=2).words == ("<pad>", "<unk>", "a", "b")
    assert Vocabulary.of(text, largest=1).words == ("<pad>", "<unk>", "a")


def test_numbers_and_words_go_both_ways():
    vocabulary = Vocabulary(["x", "y"])
    assert vocabulary.encode(["y", "nobody", "x", "<pad>"]).tolist() == [3, 1, 2, 0]
    assert vocabulary.decode(jnp.array([3, 1, 2, 0])) == ["y", "<unk>", "x", "<pad>"]
    assert (len(vocabulary), "x" in vocabulary, "z" in vocabulary) == (4, True, False)
    assert (vocabulary.pad, vocabulary.unknown) == (0, 1)


# Embeddings.


def test_an_embedding_reads_rows_and_learns_only_those(dtype):
    embedding = Embedding(5, 3, param_dtype=dtype, rngs=nnx.Rngs(0))
    tokens = np.array([[4, 0], [4, 2]])
    np.testing.assert_array_equal(embedding(tokens), np.asarray(embedding.table[...])[tokens])
    gradient: Any = jax.grad(lambda embedding: embedding(tokens).sum())(embedding)
    np.testing.assert_array_equal(
        gradient.table[...], np.array([1, 0, 1, 0, 2])[:, None] + np.zeros(3)
    )
    assert embedding.table.dtype == dtype


def test_vectors_have_a_length_of_about_one_whatever_the_vocabulary():
    for tokens in (100, 10_000):
        table = Embedding(tokens, 64, rngs=nnx.Rngs(0)).table[...]
        assert abs(float(jnp.linalg.norm(table, axis=1).mean()) - 1) < 0.05


def test_an_embedding_starts_from_given_vectors(dtype):
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    embedding = Embedding.from_vectors(vectors, param_dtype=dtype)
    np.testing.assert_array_equal(embedding.table[...], vectors.astype(dtype))


@pytest.mark.parametrize("token", [5, 300, -1, -5, -6])
def test_under_jit_a_token_outside_the_vocabulary_is_seen(token):
    embedding = Embedding(5, 3, rngs=nnx.Rngs(0))
    assert np.all(np.isnan(jax.jit(embedding)(jnp.array([token]))))


# Files.


VECTORS = WordVectors(
    ("the", "naïve", "no\u00a0break", "\u0085", "12", "<unk>"),
    np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * np.float32(1e-6),
)
FORMATS = {"glove": (read_glove, write_glove), "word2vec": (read_word2vec, write_word2vec)}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_reads_back(tmp_path, name):
    read, write = FORMATS[name]
    write(tmp_path / "vectors.txt", VECTORS)
    found = read(tmp_path / "vectors.txt")
    assert found.words == VECTORS.words
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, VECTORS.vectors)


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_read_as_they_occur_in_the_wild(tmp_path, name):
    """Spaces and carriage returns at line ends, words that hold spaces or a return, exponents."""
    text = b"the 0.5 -1e-3 \r\n. . . 1 2\nat name@domain.com 3 4\na\rb 5 6\n"
    (tmp_path / "vectors.txt").write_bytes((b"4 2\n" if name == "word2vec" else b"") + text)
    found = FORMATS[name][0](tmp_path / "vectors.txt")
    assert found.words == ("the", ". . .", "at name@domain.com", "a\rb")
    np.testing.assert_array_equal(
        found.vectors, np.array([[0.5, -1e-3], [1, 2], [3, 4], [5, 6]], np.float32)
    )


def test_the_lines_of_both_formats_are_those_of_the_field(tmp_path):
    vectors = WordVectors(("a", "b"), np.array([[1.0, -0.5], [0.25, 2.0]]))
    write_glove(tmp_path / "glove.txt", vectors)
    write_word2vec(tmp_path / "word2vec.txt", vectors)
    lines = "a 1.0 -0.5\nb 0.25 2.0\n"
    assert (tmp_path / "glove.txt").read_text() == lines
    assert (tmp_path / "word2vec.txt").read_text() == "2 2\n" + lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("glove", b"", "vectors.txt: got no words"),
        (
            "glove",
            b"a 1 2\nb 1\n",
            "vectors.txt, line 2: got 1 fields after the first; expected a word and 2",
        ),
        (
            "glove",
            b"a 1 2\nb 1 2 3\n",
            "line 2: got 3 fields after the first; expected a word and 2",
        ),
        ("glove", b"a 1 2\n\nb 1 2\n", "line 2: got 0 fields after the first"),
        ("glove", b"a 1 2\n 1 2\n", "line 2: got 2 fields after the first"),
        ("glove", b"a 1 2\nb 1 x\n", "line 2: got 'x' for a number of 'b'; expected a word and 2"),
        ("glove", b"a 1 nan\n", "line 1: got 'nan' for a number of 'a'"),
        ("glove", b"a 1 1e99\n", "line 1: got '1e99' for a number of 'a'"),
        (
            "glove",
            b"a 1\nb 2\na 3\n",
            "line 3: got the word 'a' again, after line 1; expected every",
        ),
        ("glove", b"a 1\n\xff 2\n", r"line 2: got bytes that are not UTF-8"),
        ("glove", b"a 1_0\n", r"line 1: got '1_0' for a number"),
        ("word2vec", b"", "line 1: got ''; expected two whole numbers above 0"),
        ("word2vec", b"a 1 2\n", "line 1: got 'a 1 2'; expected two whole numbers above 0"),
        ("word2vec", b"0 2\n", "line 1: got '0 2'"),
        ("word2vec", b"2 2\na 1 2\n", "vectors.txt: got 1 words; expected 2, as line 1 says"),
        ("word2vec", b"1 2\na 1\n", "line 2: got 1 fields after the first; expected a word and 2"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / "vectors.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        FORMATS[name][0](tmp_path / "vectors.txt")


def test_a_table_has_a_row_for_every_word_of_a_vocabulary():
    vectors = WordVectors(("sun", "moon"), np.array([[1.0, 5.0], [3.0, 5.0]]))
    vocabulary = Vocabulary(["moon", "star"])
    table = vectors.table(vocabulary, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(table[[0, 2]], [[0, 0], [3, 5]])
    # Drawn with the mean (2, 5) and the standard deviation (1, 0) of the vectors that are known.
    np.testing.assert_array_equal(table[[1, 3], 1], [5, 5])
    assert len({1.0, 3.0, *table[[1, 3], 0]}) == 4
    with pytest.raises(InputError, match="got 2 words without a vector \\('<unk>', 'star'\\)"):
        vectors.table(vocabulary)


# Skip-gram.


def test_loss_and_gradient_are_those_of_the_formula(x64):
    rng = np.random.default_rng(0)
    v, u = rng.normal(size=(2, 6, 4))
    words, contexts, negatives = (
        np.array([0, 3, 0]),
        np.array([1, 1, 5]),
        rng.integers(0, 6, (3, 2)),
    )

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    loss, by_v, by_u = 0.0, np.zeros_like(v), np.zeros_like(u)
    for w, c, drawn in zip(words, contexts, negatives, strict=True):
        for o, label in [(c, 1), *((n, 0) for n in drawn)]:
            loss -= np.log(sigmoid((2 * label - 1) * (u[o] @ v[w]))) / 3
            by_v[w] += (sigmoid(u[o] @ v[w]) - label) * u[o] / 3
            by_u[o] += (sigmoid(u[o] @ v[w]) - label) * v[w] / 3
    tables = Tables(jnp.asarray(v), jnp.asarray(u))
    value, gradient = jax.value_and_grad(skip_gram_loss)(tables, words, contexts, negatives)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    np.testing.assert_allclose(gradient.words, by_v, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient.contexts, by_u, rtol=1e-12, atol=1e-15)


def test_pairs_are_those_of_a_loop_over_the_text():
    rng = np.random.default_rng(0)
    text, reach = rng.integers(0, 9, 30), rng.integers(1, 5, 30)
    expected = [
        (text[i], text[j])
        for i in range(30)
        for j in range(30)
        if i != j and abs(i - j) <= reach[i]
    ]
    assert sorted(map(tuple, window_pairs(text, reach))) == sorted(expected)
    for short in (0, 1):
        assert window_pairs(text[:short], reach[:short]).shape == (0, 2)


def test_noise_and_thinning_follow_the_paper():
    counts = np.array([810, 160, 0, 30])
    np.testing.assert_allclose(
        skip_gram.noise(counts), counts**0.75 / (810**0.75 + 160**0.75 + 30**0.75)
    )
    share = skip_gram.kept_share(counts, 0.1)
    np.testing.assert_allclose(share[[0, 1, 3]], [np.sqrt(0.1 / 0.81), np.sqrt(0.1 / 0.16), 1])


def test_negatives_come_as_often_as_the_noise_says():
    distribution, count = np.array([0.0, 0.5, 0.2, 0.0, 0.3]), 40_000
    cumulative = jnp.asarray(np.cumsum(distribution), jnp.float32)
    drawn = skip_gram.draw_negatives(jax.random.key(0), cumulative, (count // 5, 5))
    share = np.bincount(np.ravel(drawn), minlength=5) / count
    np.testing.assert_allclose(share, distribution, atol=4 * 0.5 / np.sqrt(count))
    assert share[0] == share[3] == 0


@functools.cache
def two_topics():
    """A text of 2000 words in runs of 20, each of one topic of four words, numbers 0–3 and 4–7."""
    rng = np.random.default_rng(0)
    return np.concatenate([4 * rng.integers(2) + rng.integers(0, 4, 20) for _ in range(100)])


CONFIG = SkipGram(features=8, window=3, epochs=4, batch_size=64, threshold=1.0, learning_rate=0.02)


def test_words_of_one_topic_come_to_lie_together():
    news = []
    vectors = train_skip_gram(
        two_topics(),
        8,
        CONFIG,
        key=jax.random.key(0),
        progress=lambda epoch, loss: news.append((epoch, loss)),
    )
    unit = np.asarray(vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True))
    cosines = unit @ unit.T
    topic = np.arange(8) // 4
    same = topic[:, None] == topic
    off = ~np.eye(8, dtype=bool)
    assert cosines[same & off].min() > cosines[~same].max() + 0.5
    epochs, losses = zip(*news, strict=True)
    assert epochs == (1, 2, 3, 4)
    assert losses[-1] < losses[0] < 6 * np.log(2)  # six even guesses, before anything is learnt


def test_the_same_key_gives_the_same_vectors_and_another_others():
    config = SkipGram(features=4, epochs=1, batch_size=256, threshold=0.05)
    one, again, other = (
        train_skip_gram(two_topics(), 8, config, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one - other)).max() > 1e-3


# Refusals.


def train(text=None, size=8, **settings):
    text = two_topics() if text is None else text
    return train_skip_gram(text, size, SkipGram(**settings), key=jax.random.key(0))


ANYTHING: list[Any] = [b"a", ["a", None], [1, [2, 3]], np.arange(3), np.array(0), jnp.zeros((2, 2))]
ANYTHING += [iter([1, 2]), range(3), jnp.array(0.5)]
SUN: Any = WordVectors(("sun", "moon"), np.eye(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: Vocabulary(["a", "b", "a"]), "words: got 'a' twice"),
        (lambda path: Vocabulary(["<pad>"]), "words: got '<pad>' twice"),
        (lambda path: Vocabulary.of([], least=0), "least: got 0"),
        (lambda path: Vocabulary.of([], largest=0), "largest: got 0"),
        (
            lambda path: Vocabulary([]).decode([2]),
            "numbers: got 2; expected word numbers from 0 to 1",
        ),
        (lambda path: Vocabulary([]).decode([-1]), "numbers: got -1"),
        (
            lambda path: Vocabulary([]).decode(np.zeros((2, 2), int)),
            r"numbers: got int64\[2, 2\]; expected one sequence",
        ),
        (lambda path: Vocabulary([]).encode("a b"), "words: got 'a b'; expected a list of words"),
        (lambda path: Vocabulary("ab"), "words: got 'ab'; expected a list of words"),
        (lambda path: Vocabulary.of("a b"), "text: got 'a b'; expected a list of words"),
        (lambda path: Vocabulary(ANYTHING[0]), "words: got b'a'; expected a list of words"),
        *(
            (
                lambda path, words=words: Vocabulary.of(words),
                "text: got .*; expected a list of words",
            )
            for words in ANYTHING
        ),
        *(
            (
                lambda path, words=words: Vocabulary([]).decode(words),
                "numbers: got .*; expected one",
            )
            for words in (["a"], [0.5], [[1], [2, 3]], np.array(0), jnp.array(0))
        ),
        (lambda path: Embedding(0, 3, rngs=nnx.Rngs(0)), "tokens: got 0"),
        (lambda path: Embedding(3, 0, rngs=nnx.Rngs(0)), "features: got 0"),
        (lambda path: Embedding.from_vectors(np.full((2, 2), np.nan)), "vectors: got 4 non-finite"),
        (lambda path: WordVectors(("a",), np.eye(2)), "words: got 1 words and 2 vectors"),
        (lambda path: WordVectors(("a", "a"), np.eye(2)), "words: got 'a' twice"),
        (lambda path: WordVectors(("a", ""), np.eye(2)), "words: got ''"),
        (lambda path: SUN["son"], r"word: got 'son'; .* 2 words \(did you mean 'sun'\?\)"),
        (
            lambda path: read_glove(path / "none"),
            "path: got .*none; expected a file of word vectors",
        ),
        (
            lambda path: write_glove(path / "x", WordVectors(("a b",), np.ones((1, 2)))),
            "words: got 'a b'; expected words without spaces",
        ),
        (
            lambda path: write_word2vec(path / "x", WordVectors(("a",), np.full((1, 1), np.inf))),
            "vectors: got 1 non-finite",
        ),
        (lambda path: train(epochs=0), "epochs: got 0"),
        (lambda path: train(threshold=0.0), "threshold: got 0.0"),
        (lambda path: train(size=0), "vocabulary_size: got 0"),
        (lambda path: train(size=7), "tokens: got values from 0 to 7; expected .* from 0 to 6"),
        (lambda path: train(np.zeros(5)), "tokens: got float64"),
        (
            lambda path: train(np.zeros((5, 2), int)),
            "tokens: got int64.*expected shape .10., one text",
        ),
        (
            lambda path: Embedding(3, 2, rngs=nnx.Rngs(0))(jnp.ones(3)),
            "tokens: got float32.3.; expected token numbers, which are integers",
        ),
        (
            lambda path: train(np.array([0, 1]), batch_size=3, threshold=1.0),
            "batch_size: got 3; expected at most the 2 pairs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, call, message):
    with pytest.raises(InputError, match=message):
        call(tmp_path)


def test_the_line_of_a_bad_byte_is_named_in_long_files(tmp_path):
    lines = [b"w%d 1.0" % i for i in range(4000)]
    lines[3000] = b"\xff 1.0"
    (tmp_path / "vectors").write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="line 3001: got bytes"):
        read_glove(tmp_path / "vectors")


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_word(tmp_path):
    (tmp_path / "vectors").write_bytes("\ufeffa 1.0\nb 2.0\n".encode())
    assert read_glove(tmp_path / "vectors").words == ("a", "b")
