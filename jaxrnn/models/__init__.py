"""Networks built around a cell."""

from jaxrnn.models.attention import AdditiveAttention, Attention, DotAttention, Memory
from jaxrnn.models.classifier import SequenceClassifier, classifier_parameters, matched_width
from jaxrnn.models.decoding import Hypotheses, beam_search, greedy_search
from jaxrnn.models.embeddings import Embedded, Embedding
from jaxrnn.models.encoder_decoder import Decoded, EncoderDecoder
from jaxrnn.models.language_model import Generated, LanguageModel, generate, sample
from jaxrnn.models.readouts import SequenceLabeller, cross_entropy, perplexity
from jaxrnn.models.skip_gram import SkipGram, train_skip_gram
from jaxrnn.models.word_vectors import (
    WordVectors,
    read_glove,
    read_word2vec,
    write_glove,
    write_word2vec,
)

__all__ = [
    "AdditiveAttention",
    "Attention",
    "Decoded",
    "DotAttention",
    "Embedded",
    "Embedding",
    "EncoderDecoder",
    "Generated",
    "Hypotheses",
    "LanguageModel",
    "Memory",
    "SequenceClassifier",
    "SequenceLabeller",
    "SkipGram",
    "WordVectors",
    "beam_search",
    "classifier_parameters",
    "cross_entropy",
    "generate",
    "greedy_search",
    "matched_width",
    "perplexity",
    "read_glove",
    "read_word2vec",
    "sample",
    "train_skip_gram",
    "write_glove",
    "write_word2vec",
]
