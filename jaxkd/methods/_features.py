"""Methods that compare features of several stages with one loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxkd.fields import Fields, names, number, weights
from jaxkd.methods._stages import AUTO, chosen_pairs, stage_options
from jaxkd.methods.base import Method, Setup, StagePair, Term
from jaxkd.methods.distillation import Distillation, Loss, per_example, whole_batch
from jaxkd.types import Terms

# Fields of every method that compares several stages.
STAGES: dict[str, Any] = {"stages": names((AUTO,)), "stage_weights": weights()}


def feature_method(
  name: str,
  summary: str,
  kernel: Callable[..., Terms],
  *,
  options: Fields,
  weight: float,
  compares_examples: bool = False,
  last: bool = False,
  **method: Any,
) -> Method:
  """Return a method that compares features of stages, without an adapter.

  Args:
    name: name of its term.
    summary: as in Method.
    kernel: (student, teacher, stages=, stage_weights=, where=, **options) -> Terms, of
      `jaxkd.losses`.
    options: its fields; each except "stages" is passed to the kernel under its name.
    weight: default of the field "weight".
    compares_examples: whether the kernel compares examples of a batch with each other; it then
      also takes `axis_name`, and features without spatial axes, (B, C).
    last: whether "auto" is the last stage before pooling, not all that match.
    **method: other attributes of Method.
  """
  bind = whole_batch if compares_examples else per_example
  bound = [option for option in options if option != "stages"]

  def distillations(setup: Setup) -> list[Term]:
    pairs = chosen_pairs(setup, vectors=compares_examples, last=last)
    chosen = {option: setup.hyperparameters[option] for option in bound}
    loss: Loss = bind(kernel, **stage_options(setup, pairs), **chosen)
    return [feature_term(name, setup, loss, pairs)]

  fields = {**STAGES, **options, "weight": number(weight)}
  return Method(summary, fields, distillations, **{"same_classes": "", **method})


def feature_term(
  name: str,
  setup: Setup,
  loss: Loss,
  stages: Sequence[StagePair],
  where: str = "features",
  **distillation: Any,
) -> Term:
  """Return the term for the teacher `setup.teacher_name`, weighted by the config and its share.

  Args:
    name: name of the term; another teacher's name is appended to it.
    setup: the networks.
    loss: as in Distillation.
    stages: the stages that are compared.
    where: "features" or "preactivations".
    **distillation: other attributes of Distillation.
  """
  weight = setup.share * setup.hyperparameters.weight
  found = Distillation(setup.named(name), loss, weight, setup.teacher_name, **distillation)
  return Term(found, setup.compared(stages, where))
