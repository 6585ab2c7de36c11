"""Trainable modules between the outputs of a student and of a teacher."""

from jaxkd.adapters.at_stages import AtStages, TeacherAtStages
from jaxkd.adapters.factors import FactorDecoder, FactorEncoder, paraphraser_for, translator_for
from jaxkd.adapters.gate import Gate
from jaxkd.adapters.memory import all_examples, write_rows
from jaxkd.adapters.past import PastPredictions
from jaxkd.adapters.projector import Projector, projector_for
from jaxkd.adapters.regressor import Regressor, regressor_for
from jaxkd.adapters.review import AttentionFusion, ReviewFusion

__all__ = [
  "AtStages",
  "AttentionFusion",
  "FactorDecoder",
  "FactorEncoder",
  "Gate",
  "PastPredictions",
  "Projector",
  "Regressor",
  "ReviewFusion",
  "TeacherAtStages",
  "all_examples",
  "paraphraser_for",
  "projector_for",
  "regressor_for",
  "translator_for",
  "write_rows",
]
