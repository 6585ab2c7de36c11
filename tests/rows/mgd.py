"""Rows of masked generative distillation (MGD)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.generated import mgd
from tests.rows._counted import kernel, of_outputs
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps

SUBJECTS = {
  "masked_generative": Subject(of_maps(losses.masked_generative), (B, 4, 4, 2), (B, 2, 2, 2))
}

COUNTED = [
  kernel("squared_error_sum", (2, 3), (2, 3)),
  of_outputs("masked_generative", (2, 2, 3), (2, 2, 3)),
]

BEHIND_A_NETWORK = {"masked_generative": of(losses.masked_generative, stages=BOTH)}

MUTATIONS = [
  Mutation(
    "MGD's sum of squares averaged over an example",
    "mgd.py",
    "return jnp.sum(squares) / number(counted, len(student))",
    "return jnp.mean(squares)",
    "test_mgd.py",
    "mgd",
  ),
  Mutation(
    "MGD's padded examples counted",
    "mgd.py",
    "number(counted, len(student))",
    "len(student)",
    "test_mgd.py",
    "",
  ),
  Mutation(
    "ViTKD's factor of a position not applied",
    "mgd.py",
    "if positions is not None:",
    "if False:",
    "test_vitkd.py",
    "vitkd",
  ),
]

GOLDEN = {"mgd": mgd}

RECORDED = ("mgd/mask='spatial'/masked=0.65",)
