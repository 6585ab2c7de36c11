"""PKT, probabilistic knowledge transfer: each example's distribution over the batch."""

from __future__ import annotations

from jaxkd.fields import names, number
from jaxkd.losses import probabilistic_knowledge_transfer
from jaxkd.methods._features import feature_method

METHOD = feature_method(
  "pkt",
  "probabilistic knowledge transfer (Passalis and Tefas, 2018)",
  probabilistic_knowledge_transfer,
  options={"stages": names(("pooled",)), "eps": number(1e-7, exclusive=True)},
  weight=30000.0,
  compares_examples=True,
  needs="features",
  source="Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, "
  "ECCV 2018",
  multi_label=True,
)
