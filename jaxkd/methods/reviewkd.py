"""ReviewKD: the student's stages, fused from deep to shallow, against all stages of the teacher."""

from __future__ import annotations

import dataclasses

from jaxkd.adapters import ReviewFusion
from jaxkd.fields import choice, integer, number
from jaxkd.losses import knowledge_review
from jaxkd.losses._checks import Arrays
from jaxkd.methods._features import STAGES, feature_term
from jaxkd.methods._stages import AUTO, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, StagePair, Term
from jaxkd.methods.distillation import per_example
from jaxkd.methods.ramps import warm_up

_POOLED = ("pooled", "pooled")


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  pairs = _pairs(setup)
  theirs = tuple((target, target) for _, target in pairs)
  student, _ = setup.shapes(pairs[-1])
  fusion = ReviewFusion(
    pairs,
    tuple(setup.shapes(pair)[1][1:] for pair in pairs),
    hyperparameters.width or min(512, student[-1]),
    hyperparameters.student_arrays,
    _teacher_arrays(setup, pairs),
    **setup.options,
  )
  options = stage_options(setup, pairs) | {"stages": theirs}
  term = feature_term(
    "reviewkd", setup, per_example(knowledge_review, **options), pairs, adapter=fusion
  )
  weight = warm_up(
    setup.share * hyperparameters.weight,
    epochs=hyperparameters.warmup_epochs,
    steps_per_epoch=setup.steps_per_epoch,
  )
  distillation = dataclasses.replace(term.distillation, weight=weight)
  return [dataclasses.replace(term, distillation=distillation)]


def _pairs(setup: Setup) -> tuple[StagePair, ...]:
  """Return the pairs of stages with maps, shallow to deep, and the pooled vectors if both have."""
  pairs = chosen_pairs(setup)
  ours, theirs = setup.all_shapes()
  vectors = all(len(shapes.get("pooled", ())) == 2 for shapes in (ours, theirs))
  return (*pairs, _POOLED) if vectors and _POOLED not in pairs else pairs


def _teacher_arrays(setup: Setup, pairs: tuple[StagePair, ...]) -> Arrays:
  """Return what is read of the teacher: by default preactivations, if it has all of them."""
  chosen: Arrays = setup.hyperparameters.teacher_arrays
  if chosen != AUTO:
    return chosen
  maps = {target for _, target in pairs} - {"pooled"}
  return "preactivations" if maps <= set(setup.teacher.output.preactivations) else "features"


METHOD = Method(
  "ReviewKD: stages fused from deep to shallow (Chen et al., 2021)",
  {
    **STAGES,
    # Channels of the fused maps; 0 is the width of the student's last feature, at most 512.
    "width": integer(0),
    "student_arrays": choice("features", ("features", "preactivations")),
    "teacher_arrays": choice(AUTO, (AUTO, "features", "preactivations")),
    # The weight of epoch e, from 1, is multiplied by min(e / warmup_epochs, 1); 0 is no warm-up.
    "warmup_epochs": number(20.0),
    "weight": number(5.0),
  },
  _distillations,
  source="Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021",
  needs="maps",
  same_classes="",
  multi_label=True,
)
