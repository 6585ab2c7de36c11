"""Attention transfer from gradients of the cross-entropy."""

from __future__ import annotations

from typing import Any

from jaxkd.fields import choice, flag, names, number
from jaxkd.losses import gradient_attention_transfer, gradient_symmetry
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, Term
from jaxkd.methods.distillation import Distillation, per_example
from jaxkd.types import Terms


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters, stages = setup.hyperparameters, chosen_pairs(setup)
  loss = per_example(
    gradient_attention_transfer,
    **stage_options(setup, stages),
    norm=hyperparameters.norm,
    normalize=hyperparameters.normalize,
    reduce=hyperparameters.reduce,
  )
  gradients = tuple(ours for ours, _ in stages), tuple(theirs for _, theirs in stages)
  terms = [feature_term("gradient_at", setup, loss, stages, gradients=gradients)]
  if hyperparameters.symmetry_weight and setup.is_first:
    # A term of the student alone: one for any number of teachers.
    terms.append(
      Term(
        Distillation(
          "symmetry",
          per_example(_symmetry),
          hyperparameters.symmetry_weight,
          setup.teacher_name,
          gradients=(("images", "flipped_images"), ()),
        )
      )
    )
  return terms


def _symmetry(student: Any, teacher: Any, **options: Any) -> Terms:
  return gradient_symmetry(student, **options)


METHOD = Method(
  "attention transfer from gradients (Zagoruyko and Komodakis, 2017)",
  {
    **STAGES,
    "stages": names(("images",)),
    "norm": choice("l2", ("l2", "mse")),
    "normalize": flag(False),
    "reduce": choice("none", ("none", "abs_mean", "abs_sum", "abs_max")),
    "symmetry_weight": number(0.0),
    "weight": number(1.0),
  },
  _distillations,
  source="Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017",
  # Labels are the student's classes; with other classes the teacher's loss is undefined.
  same_classes="takes gradients of the teacher's cross-entropy with the student's labels",
  needs_network=True,
)
