"""SP, similarity-preserving distillation: similarities between examples of a batch."""

from __future__ import annotations

from jaxkd.fields import choice
from jaxkd.losses import similarity_preserving
from jaxkd.methods._features import feature_method

METHOD = feature_method(
  "sp",
  "similarity-preserving distillation (Tung and Mori, 2019)",
  similarity_preserving,
  options={"row_norm": choice("l2", ("l2", "l1"))},
  weight=3000.0,
  compares_examples=True,
  last=True,
  needs="features",
  source="Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019",
  multi_label=True,
)
