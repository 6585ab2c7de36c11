"""AT: attention transfer from activations."""

from __future__ import annotations

from jaxkd.fields import choice, flag, number
from jaxkd.losses import attention_transfer
from jaxkd.methods._features import feature_method

METHOD = feature_method(
  "at",
  "attention transfer from activations (Zagoruyko and Komodakis, 2017)",
  attention_transfer,
  options={
    "power": number(2.0, exclusive=True),
    "norm": choice("code", ("code", "paper")),
    "reduce": choice("mean", ("mean", "sum", "max")),
    "absolute": flag(False),
  },
  weight=1000.0,
  needs="maps",
  source="Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017",
  multi_label=True,
)
