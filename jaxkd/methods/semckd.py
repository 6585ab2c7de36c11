"""SemCKD: every layer of the student against every layer of the teacher, weighed by attention."""

from __future__ import annotations

from typing import Any

from jaxkd.adapters import SemanticCalibration
from jaxkd.errors import unknown_name
from jaxkd.fields import integer, names, number
from jaxkd.losses import semantic_calibration
from jaxkd.methods._features import feature_term
from jaxkd.methods._stages import AUTO, need_maps
from jaxkd.methods.base import Method, Setup, Shape, Term
from jaxkd.methods.distillation import WholeBatch
from jaxkd.types import Batch, Context, Output, Terms


def _distillations(setup: Setup) -> list[Term]:
  hyperparameters = setup.hyperparameters
  shapes = setup.all_shapes()
  ours = _chosen(hyperparameters.student_stages, shapes[0], "student")
  theirs = _chosen(hyperparameters.teacher_stages, shapes[1], "teacher")
  adapter = SemanticCalibration(
    tuple(ours),
    {name: shape[-1] for name, shape in theirs.items()},
    slots=hyperparameters.slots,
    factor=hyperparameters.factor,
    temperature=hyperparameters.temperature,
    **setup.options,
  )
  pairs = [(s, t) for s in ours for t in theirs]

  def loss(student: Output, teacher: Any, batch: Batch, context: Context) -> Terms:
    attention = student.features["attention"]
    return semantic_calibration(
      student,
      teacher,
      stages=[f"{s}:{t}" for s, t in pairs],
      attention=[attention[:, i, j] for i in range(len(ours)) for j in range(len(theirs))],
      layers=len(ours),
      axis_name=context.axis_name,
      where=batch.mask,
    )

  return [feature_term("semckd", setup, WholeBatch(loss), pairs, adapter=adapter)]


def _chosen(wanted: tuple[str, ...], shapes: dict[str, Shape], owner: str) -> dict[str, Shape]:
  """Return the stages that a field names, with their shapes; "auto" is all maps but the stem."""
  maps = need_maps(shapes, owner)
  found: dict[str, Shape] = {}
  for name in wanted:
    if name != AUTO and len(shapes.get(name, ())) != 4:
      raise unknown_name(f"stage of the {owner} with maps:", name, maps)
    found |= maps if name == AUTO else {name: shapes[name]}
  return found


METHOD = Method(
  "SemCKD: attention over all pairs of layers (Chen et al., 2021)",
  {
    "student_stages": names((AUTO,)),
    "teacher_stages": names((AUTO,)),
    # Inputs of the attention's first linear layers: the batch size of the published code.
    "slots": integer(64, minimum=1),
    "factor": integer(4, minimum=1),
    "temperature": number(1.0, exclusive=True),
    "weight": number(400.0),
  },
  _distillations,
  source="Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021",
  needs="maps",
  same_classes="",
  multi_label=True,
)
