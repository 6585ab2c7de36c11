"""WTTM, weighted transformed teacher matching: uncertain examples of the teacher weigh more."""

from __future__ import annotations

from jaxkd.fields import flag, number
from jaxkd.methods.base import Method
from jaxkd.methods.ttm import distillations_of

METHOD = Method(
  "transformed teacher matching, weighted by the teacher's power sums (Zheng and Yang, 2024)",
  {
    "exponent": number(0.2, exclusive=True),
    "standardize": flag(False),
    # That of the published recipe, in which WTTM is added to CRD.
    "weight": number(4.0),
  },
  distillations_of("wttm", weighted=True),
  source="Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024",
)
