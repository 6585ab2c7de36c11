"""Small trainable modules between a student's features and a teacher's."""

from jaxkd.connectors.factors import (
  FactorDecoder,
  FactorEncoder,
  paraphraser_for,
  translator_for,
)
from jaxkd.connectors.gate import Gate
from jaxkd.connectors.projector import Projector, projector_for
from jaxkd.connectors.regressor import Regressor, regressor_for

__all__ = [
  "FactorDecoder",
  "FactorEncoder",
  "Gate",
  "Projector",
  "Regressor",
  "paraphraser_for",
  "projector_for",
  "regressor_for",
  "translator_for",
]
