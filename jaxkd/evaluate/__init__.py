"""What predictors are worth: accuracy and cross-entropy."""

from jaxkd.evaluate.accuracy import score

__all__ = ["score"]
