"""Networks built around a cell, and what stands beside them in a comparison."""

from jaxrnn.models.attention import AdditiveAttention, Attention, DotAttention, Memory
from jaxrnn.models.classifier import (
    EncoderClassifier,
    SequenceClassifier,
    classifier_parameters,
    matched_width,
)
from jaxrnn.models.decoding import Hypotheses, beam_search, greedy_search
from jaxrnn.models.embeddings import Embedded, Embedding
from jaxrnn.models.encoder import SequenceEncoder, last_step, mean_step
from jaxrnn.models.encoder_decoder import Decoded, EncoderDecoder
from jaxrnn.models.hierarchical import HierarchicalRNN
from jaxrnn.models.language_model import Generated, LanguageModel, generate, sample
from jaxrnn.models.multi_dimensional import ImageClassifier, MultiDimensionalLSTM
from jaxrnn.models.readouts import SequenceLabeller, cross_entropy, perplexity
from jaxrnn.models.skip_gram import SkipGram, train_skip_gram
from jaxrnn.models.streams import Stream, streaming
from jaxrnn.models.tcn import TCN
from jaxrnn.models.token_transformer import (
    MaskedTokens,
    TokenTransformer,
    mask_tokens,
    masked_token_loss,
    next_token_loss,
)
from jaxrnn.models.transformer import TransformerEncoder
from jaxrnn.models.windowed_mlp import WindowedMLP
from jaxrnn.models.word_vectors import (
    WordVectors,
    read_glove,
    read_word2vec,
    write_glove,
    write_word2vec,
)

__all__ = [
    "TCN",
    "AdditiveAttention",
    "Attention",
    "Decoded",
    "DotAttention",
    "Embedded",
    "Embedding",
    "EncoderClassifier",
    "EncoderDecoder",
    "Generated",
    "HierarchicalRNN",
    "Hypotheses",
    "ImageClassifier",
    "LanguageModel",
    "MaskedTokens",
    "Memory",
    "MultiDimensionalLSTM",
    "SequenceClassifier",
    "SequenceEncoder",
    "SequenceLabeller",
    "SkipGram",
    "Stream",
    "TokenTransformer",
    "TransformerEncoder",
    "WindowedMLP",
    "WordVectors",
    "beam_search",
    "classifier_parameters",
    "cross_entropy",
    "generate",
    "greedy_search",
    "last_step",
    "mask_tokens",
    "masked_token_loss",
    "matched_width",
    "mean_step",
    "next_token_loss",
    "perplexity",
    "read_glove",
    "read_word2vec",
    "sample",
    "streaming",
    "train_skip_gram",
    "write_glove",
    "write_word2vec",
]
