"""Networks built around a cell, and what stands beside them in a comparison."""

from jaxrnn.models.classifier import SequenceClassifier, classifier_parameters, matched_width
from jaxrnn.models.encoder import EncoderClassifier, SequenceEncoder, last_step, mean_step
from jaxrnn.models.hierarchical import HierarchicalRNN
from jaxrnn.models.multi_dimensional import ImageClassifier, MultiDimensionalLSTM
from jaxrnn.models.tcn import TCN
from jaxrnn.models.transformer import (
    MaskedTokens,
    TokenTransformer,
    TransformerEncoder,
    mask_tokens,
    masked_token_loss,
    next_token_loss,
)
from jaxrnn.models.windowed_mlp import WindowedMLP

__all__ = [
    "TCN",
    "EncoderClassifier",
    "HierarchicalRNN",
    "ImageClassifier",
    "MaskedTokens",
    "MultiDimensionalLSTM",
    "SequenceClassifier",
    "SequenceEncoder",
    "TokenTransformer",
    "TransformerEncoder",
    "WindowedMLP",
    "classifier_parameters",
    "last_step",
    "mask_tokens",
    "masked_token_loss",
    "matched_width",
    "mean_step",
    "next_token_loss",
]
