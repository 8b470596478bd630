"""Networks built around a cell."""

from jaxrnn.models.classifier import SequenceClassifier, classifier_parameters, matched_width

__all__ = ["SequenceClassifier", "classifier_parameters", "matched_width"]
