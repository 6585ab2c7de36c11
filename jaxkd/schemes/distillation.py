"""One summand of an objective: what of a student is held against what of which teacher."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxkd.counts import refuse_parts, scaled
from jaxkd.errors import ConfigError
from jaxkd.networks import key_for
from jaxkd.types import Array, Batch, Context, Output, Terms

# A number, or a function of the step (`jaxkd.schemes.ramp`, or any optax schedule).
Weight = float | Callable[[Array], Array]
Metric = Callable[..., tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Distillation:
  """One summand of the objective.

  Attributes:
    name: under which its terms are reported; unique in a scheme.
    loss: (student Output, teacher Output) -> Terms, its options already bound
      (`functools.partial(attention_transfer, power=2)`). It is also given `where`, the mask of a
      batch that has one, and must be a mean over the examples that count.
    weight: of its terms; a function of the step ramps.
    teacher: the participant it looks to; or participants and their weights: it then sees the
      weighted mean of their logits, and nothing else of them.
    connectors: student stage -> module through which that stage's array passes before the loss
      sees it. Each is a participant, "NAME_STAGE_connector", and learns with the student.
    connects: whether connectors take the stages' "features" or their "preactivations".
    teacher_connectors: teacher stage -> module through which that stage's features pass. Each is
      a participant, "NAME_STAGE_teacher_connector", that does not learn here: it comes trained.
    student_gradients: stages ("images" for the input) where the loss reads `Output.gradients` of
      the student.
    teacher_gradients: the same of the teacher.
    global_batch: the loss compares examples with each other; it is also given `axis_name`, the
      device axis, so that it sees the batch of all devices. It is refused on a batch in parts.
    labelled: the loss is also given the batch's `labels` and `weights`, and `axis_name`. It is
      refused on a batch in parts.
    random: the loss is also given `rng`, a key of this step.
    metrics: name -> (student Output, teacher Output) -> (sum, count), reported beside the terms;
      with `where`, too, for a batch with a mask.
    compares: in words, which stages are compared; nothing is computed from it.
  """

  name: str
  loss: Callable[..., Terms]
  weight: Weight = 1.0
  teacher: str | Mapping[str, float] = "teacher"
  connectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  connects: Literal["features", "preactivations"] = "features"
  teacher_connectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  student_gradients: tuple[str, ...] = ()
  teacher_gradients: tuple[str, ...] = ()
  global_batch: bool = False
  labelled: bool = False
  random: bool = False
  metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
  compares: str = ""

  @property
  def teachers(self) -> tuple[str, ...]:
    """The participants it looks to."""
    return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

  def connector_name(self, stage: str) -> str:
    """The participant that holds a connector's variables."""
    return f"{self.name}_{stage}_connector"

  def teacher_connector_name(self, stage: str) -> str:
    """The participant that holds a teacher connector's variables."""
    return f"{self.name}_{stage}_teacher_connector"

  def combined(self, outputs: Mapping[str, Output]) -> Output:
    """What it sees of its teachers: the one's Output, or the mean of several ones' logits."""
    if isinstance(self.teacher, str):
      return outputs[self.teacher]
    total = sum(self.teacher.values())
    mean: Any = sum(
      (weight / total) * jnp.asarray(outputs[name].logits) for name, weight in self.teacher.items()
    )
    return Output(logits=mean)

  def terms(self, student: Output, teacher: Output, batch: Batch, context: Context) -> Terms:
    """Its weighted terms; both Outputs as connectors left them."""
    options = mask_option(self.loss, batch, f"the loss of distillation {self.name!r}")
    pooled = self.global_batch or self.labelled
    if self.global_batch:
      refuse_parts(repr(self.name), context, "which compares the examples of a batch")
    if self.labelled:
      refuse_parts(repr(self.name), context, "which divides by what the labels of a batch weigh")
    if pooled:
      options["axis_name"] = context.axis_name
    if self.labelled:
      options |= {"labels": batch.labels, "weights": batch.weights}
    if self.random:
      options["rng"] = key_for(context.rng, self.name)
    weight = self.weight(context.step) if callable(self.weight) else self.weight
    terms = self.loss(student, teacher, **options)
    return weight * (terms if pooled else scaled(terms, batch, context))


def mask_option(function: Callable[..., Any], batch: Batch, what: str) -> dict[str, Any]:
  """The option that leaves a batch's padding out of a loss; none where there is no padding.

  Raises:
    ConfigError: naming the function as `what`, if it takes no `where`.
  """
  if batch.mask is None:
    return {}
  parameters = inspect.signature(function).parameters
  if "where" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
    raise ConfigError(
      f"batch.mask is given, but {what} takes no where=: without it padding would count"
    )
  bound = function.keywords if isinstance(function, functools.partial) else {}
  if bound.get("where") is not None:
    raise ConfigError(f"batch.mask is given, but {what} has where={bound['where']!r} already")
  return {"where": batch.mask}
