"""Trainable modules between the outputs of a student and of a teacher."""

from jaxkd.adapters.at_stages import AtStages, TeacherAtStages
from jaxkd.adapters.contrast import ContrastMemory, ExampleTable
from jaxkd.adapters.embeddings import Embeddings
from jaxkd.adapters.factors import FactorDecoder, FactorEncoder, paraphraser_for, translator_for
from jaxkd.adapters.gate import Gate
from jaxkd.adapters.generator import MaskedGenerator, TokenGenerator
from jaxkd.adapters.heads import ExitsAtStages
from jaxkd.adapters.memory import all_examples, write_rows
from jaxkd.adapters.orthogonal import OrthogonalProjector
from jaxkd.adapters.past import PastPredictions
from jaxkd.adapters.peer_attention import PeerAttention
from jaxkd.adapters.projector import Projector, projector_for
from jaxkd.adapters.regressor import Regressor, regressor_for
from jaxkd.adapters.review import AttentionFusion, ReviewFusion
from jaxkd.adapters.semckd import LayerRegressor, SemanticCalibration, StageAttention
from jaxkd.adapters.temperature import LearnedTemperature
from jaxkd.adapters.variational import (
  VariationalRegressor,
  VariationalRegressors,
  variational_regressor_for,
)
from jaxkd.adapters.weak_head import WeakHead

__all__ = [
  "AtStages",
  "AttentionFusion",
  "ContrastMemory",
  "Embeddings",
  "ExampleTable",
  "ExitsAtStages",
  "FactorDecoder",
  "FactorEncoder",
  "Gate",
  "LayerRegressor",
  "LearnedTemperature",
  "MaskedGenerator",
  "OrthogonalProjector",
  "PastPredictions",
  "PeerAttention",
  "Projector",
  "Regressor",
  "ReviewFusion",
  "SemanticCalibration",
  "StageAttention",
  "TeacherAtStages",
  "TokenGenerator",
  "VariationalRegressor",
  "VariationalRegressors",
  "WeakHead",
  "all_examples",
  "paraphraser_for",
  "projector_for",
  "regressor_for",
  "translator_for",
  "variational_regressor_for",
  "write_rows",
]
