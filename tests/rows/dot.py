"""Rows of the distillation-oriented trainer (DOT), an optimizer."""

from __future__ import annotations

from tests.golden_adapters.dot import dot
from tests.rows._mutation import Mutation

MUTATIONS = [
  Mutation(
    "DOT's two momenta exchanged",
    "train/dot.py",
    "low, high = momentum - delta, momentum + delta",
    "high, low = momentum - delta, momentum + delta",
    "train/test_dot.py",
    "dot",
  ),
  Mutation(
    "DOT's weight decay in both buffers",
    "train/dot.py",
    "      if g is None:\n        h = h +",
    "      if True:\n        h = h +",
    "train/test_dot.py",
    "dot",
  ),
  Mutation(
    "DOT's smaller momentum where there is no distillation",
    "train/dot.py",
    "middle if h is None else low",
    "low",
    "train/test_dot.py",
    "dot",
  ),
  Mutation(
    "both gradients of DOT are those of the labels",
    "train/by_term.py",
    "[(jnp.zeros_like(sums[0]), jnp.ones_like(sums[1]))]",
    "[(jnp.ones_like(sums[0]), jnp.zeros_like(sums[1]))]",
    "train/test_dot.py",
    "",
  ),
]

GOLDEN = {"dot": dot}
