"""Rows of decoupled knowledge distillation (DKD)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.dkd import dkd
from tests.rows import _networked
from tests.rows._counted import of_classes as counted
from tests.rows._mutation import Mutation
from tests.rows._subject import B, Subject, of_classes

SUBJECTS = {
  "decoupled_distillation": Subject(of_classes(losses.decoupled_distillation), (B, 5), (B, 5)),
  "decoupled_distillation_standardized": Subject(
    of_classes(losses.decoupled_distillation, standardize=True, temperature=2.0),
    (B, 5),
    (B, 5),
    long=True,
  ),
}

COUNTED = [counted("target_class_kl"), counted("other_classes_kl", temperature=1.0)]

CALLS = {"decoupled_distillation": lambda s, t: losses.decoupled_distillation(s, t, [0, 1])}

MORE = {"target_class_kl": ([0, 1],), "other_classes_kl": ([0, 1],)}

BEHIND_A_NETWORK = {
  "decoupled_distillation": _networked.of_classes(losses.decoupled_distillation),
  "decoupled_distillation standardized": _networked.of_classes(
    losses.decoupled_distillation, standardize=True, temperature=2.0
  ),
}

MUTATIONS = [
  Mutation(
    "DKD's target class left among the others",
    "_targets.py",
    """  others = jnp.where(chosen, -jnp.inf, logits)
  alone =""",
    """  others = logits
  alone =""",
    "test_dkd.py",
    "dkd",
  ),
  Mutation(
    "DKD's two weights exchanged",
    "dkd.py",
    """    "target": part(target_class_kl, target_weight),
    "others": part(other_classes_kl, others_weight),
""",
    """    "target": part(target_class_kl, others_weight),
    "others": part(other_classes_kl, target_weight),
""",
    "test_dkd.py",
    "dkd",
  ),
  Mutation(
    "mean over labels divided by the weights of one device",
    "_targets.py",
    "total = lax.pmean(total, axis_name)",
    "total = total",
    "test_targets.py",
    "",
  ),
]

GOLDEN = {"dkd": dkd}

RECORDED = ("dkd/standardize=True/temperature=2.0/others_weight=9.0/warmup_epochs=0.0",)
