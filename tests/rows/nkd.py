"""Rows of normalised knowledge distillation (NKD)."""

from __future__ import annotations

from jaxkd import losses
from tests.rows import _networked
from tests.rows._counted import of_classes as counted
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, of_classes

SUBJECTS = {
  "normalized_distillation": Subject(of_classes(losses.normalized_distillation), (B, 5), (B, 5)),
  "normalized_distillation_all_classes": Subject(
    of_classes(
      losses.normalized_distillation, without_target=False, standardize=True, temperature=3.0
    ),
    (B, 5),
    (B, 5),
    long=True,
  ),
}

COUNTED = [
  counted("target_soft_cross_entropy"),
  counted("other_classes_cross_entropy", temperature=3.0),
]

CALLS = {"normalized_distillation": lambda s, t: losses.normalized_distillation(s, t, [0, 1])}

MORE = {"target_soft_cross_entropy": ([0, 1],), "other_classes_cross_entropy": ([0, 1],)}

BEHIND_A_NETWORK = {
  "normalized_distillation": _networked.of_classes(losses.normalized_distillation),
}

MUTATIONS = [
  Mutation(
    "NKD's target not weighted by the teacher's probability",
    "nkd.py",
    "-jnp.where(p_teacher > 0, p_teacher, 1.0) * log_p",
    "-log_p",
    "test_nkd.py",
    "",
  ),
  Mutation(
    "NKD's classes without the target, where all are asked for",
    "nkd.py",
    "left_out = targets.chosen if without_target else jnp.zeros_like(targets.chosen)",
    "left_out = targets.chosen",
    "test_nkd.py",
    "",
  ),
  Mutation(
    "NKD's other classes without the entropy of the target",
    "nkd.py",
    "values = relative_entropy(log_q, log_target) + entropy(log_target)",
    "values = relative_entropy(log_q, log_target)",
    "test_nkd.py",
    "",
  ),
]

RECORDED = ("nkd/without_target=False/standardize=True",)
