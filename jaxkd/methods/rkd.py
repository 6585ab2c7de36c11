"""RKD, relational knowledge distillation: distances and angles between examples of a batch."""

from __future__ import annotations

from jaxkd.fields import names, number
from jaxkd.losses import relational
from jaxkd.methods._features import feature_method

METHOD = feature_method(
  "rkd",
  "relational knowledge distillation: distances and angles (Park et al., 2019)",
  relational,
  options={
    "stages": names(("pooled",)),
    "distance_weight": number(25.0),
    "angle_weight": number(50.0),
  },
  weight=1.0,
  compares_examples=True,
  needs="features",
  source="Park et al., Relational Knowledge Distillation, CVPR 2019",
  multi_label=True,
)
