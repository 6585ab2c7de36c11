"""The scheme of a student with frozen teachers: any sum of distillations, with any adapters."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.methods._gradients import infer_with_gradients, learn_with_gradients
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods._teacher_parameters import with_parameters
from jaxkd.methods._views import check_views, student_views, teacher_views
from jaxkd.methods.distillation import Distillation, call_with_mask
from jaxkd.networks import (
  Model,
  infer,
  infer_batch,
  initialize,
  key_for,
  later_learners,
  learn,
  merge,
  partial_learners,
)
from jaxkd.preprocessing import plain
from jaxkd.shapes import InputShape
from jaxkd.tables import Table
from jaxkd.types import (
  MEMORY,
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Output,
  Participants,
  Scheme,
  Terms,
)

# (participants, student's output, distillation -> student's output after its adapter) -> logits
LogitsOf = Callable[[Participants, Output, Mapping[str, Any]], Any]


def offline(
  student: nn.Module,
  teachers: Mapping[str, Model | Table],
  distillations: Sequence[Distillation],
  *,
  label_weight: float = 1.0,
  to_stage: str | None = None,
  from_stage: str | None = None,
  image_shape: InputShape | None = None,
  logits_of: LogitsOf | None = None,
) -> Scheme:
  """Return the scheme of one student and one or several frozen teachers.

  The objective is label_weight * cross-entropy + sum of weight * loss(student, teacher). Teachers
  run in evaluation mode on the student's augmented images, converted if needed.

  Participants: "student", the teachers, the adapters. Terms: "labels", and those of the
  distillations.

  Args:
    student: `__call__(images, train) -> Output`.
    teachers: participant name -> model; from `jaxkd.preprocessing.as_trained` if it was trained on
      images of another normalisation or size than the student's; or a `jaxkd.methods.Table` of
      its logits.
    distillations: the terms of the objective besides the labels.
    label_weight: weight of the cross-entropy on labelled examples; 0 needs no labels.
    to_stage: run and train the student up to this stage only, in a first phase before its other
      layers learn. There are no logits then, so no predictor, unless `logits_of` returns them.
    from_stage: train the student after this stage only; the layers up to it are frozen: they run
      in evaluation mode, and neither parameters nor statistics change.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`), to find the layers up to
      a stage by tracing; needed with `to_stage` or `from_stage`.
    logits_of: function that returns the logits whose accuracy is reported; None takes the
      student's.

  Raises:
    ConfigError: if `to_stage` is given together with a label weight or `from_stage`; a stage
      without `image_shape`, or with gradients of the student; if two distillations have the same
      name or the name "labels", two participants have the same name, or a distillation names an
      unknown teacher, or gradients of a table. When traced, if a part of a distillation has the
      name of another term.
  """
  _check_names(teachers, distillations)
  at_student = tuple(_each(d.gradients[0] for d in distillations))
  if at_student and (to_stage is not None or from_stage is not None):
    raise ConfigError(
      f"gradients={at_student}: they are of the whole student, expected none with "
      f"to_stage={to_stage!r} and from_stage={from_stage!r}"
    )
  for d in distillations:
    for name in d.teachers:
      if d.gradients[1] and isinstance(teachers[name], Table):
        raise ConfigError(
          f"distillation {d.name!r} reads gradients {d.gradients[1]} of {name!r}, which is "
          f"{teachers[name]}: expected a network"
        )
  heads = tuple(_each((d.labelled,) for d in distillations if d.labelled))
  if len(heads) > 1:
    raise ConfigError(f"the labels' term can take one head of the student, not {heads}")
  viewed = tuple(_each(d.views for d in distillations))
  if viewed:
    check_views(distillations, teachers, whole=to_stage is None and from_stage is None)
  learners = _student_learners(student, label_weight, to_stage, from_stage, image_shape)
  adapted = [d for d in distillations if d.adapter is not None]
  scored = logits_of or (_own_logits if to_stage is None else None)

  def labelled(output: Output) -> Any:
    return output.features[heads[0]] if heads else output.logits

  def init(rng: Array, batch: Batch) -> Participants:
    everyone = {"student": student, **teachers}
    participants = {
      name: initialize(model, rng, name, batch.inputs) for name, model in everyone.items()
    }
    if not any(d.adapter or d.teacher_adapter for d in distillations):
      return participants
    outputs = {n: infer_batch(m, participants[n], n, batch) for n, m in everyone.items()}
    for d in distillations:
      seen = d.combined(outputs)
      if d.teacher_parameters:
        seen = with_parameters(d, seen, participants, batch)
      if d.teacher_adapter is not None:
        name = d.frozen_participant
        participants[name] = initialize(d.teacher_adapter, rng, name, (seen, batch))
        seen = infer(d.teacher_adapter, participants[name], (seen, batch))
      if d.adapter is not None:
        name = d.learning_participant
        drawn = initialize(d.adapter, rng, name, (outputs["student"], seen, batch))
        participants[name] = {"params": {}, **drawn}  # an adapter may have state alone
    return participants

  def targets(participants: Participants, batch: Batch) -> dict[str, Any]:
    """Return the teacher side of each distillation; "labels": the features at `from_stage`."""
    if any(any(d.gradients) for d in distillations):
      refuse_multi_hot("gradients of the cross-entropy", batch)
    outputs = {}
    for name, model in teachers.items():
      stages = tuple(_each(d.gradients[1] for d in distillations if name in d.teachers))
      if stages and not isinstance(model, Table):  # which has none, as checked above
        outputs[name] = infer_with_gradients(
          model, participants[name], batch.inputs, batch.labels, batch.weights, stages, batch.mask
        )
      else:
        outputs[name] = infer_batch(model, participants[name], name, batch)
    seen = {}
    for d in distillations:
      seen[d.name] = d.combined(outputs)
      if d.teacher_parameters:
        seen[d.name] = with_parameters(d, seen[d.name], participants, batch)
      if d.views:
        seen[d.name] = {"": seen[d.name], **teacher_views(d, teachers, participants, batch)}
      if d.teacher_adapter is not None:
        variables = participants[d.frozen_participant]
        seen[d.name] = infer(d.teacher_adapter, variables, (seen[d.name], batch))
    if from_stage is not None:
      # No distillation has the name "labels".
      encoded = infer(student, participants["student"], batch.inputs, to_stage=from_stage)
      seen["labels"] = Output(features={from_stage: encoded.features[from_stage]})
    return seen

  def run_student(
    variables: Participants, batch: Batch, targets: Mapping[str, Any], rng: Array
  ) -> tuple[Any, Participants]:
    if at_student:
      labels = batch.labels, batch.weights
      return learn_with_gradients(
        student, variables, batch.inputs, *labels, at_student, rng, batch.mask
      )
    if from_stage is not None:
      features = targets["labels"].features[from_stage]
      return learn(student, variables, features, rng, from_stage=from_stage, where=batch.mask)
    return learn(student, variables, batch.inputs, rng, to_stage=to_stage, where=batch.mask)

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: dict[str, Any],
    context: Context,
  ) -> tuple[Array, Aux]:
    everyone = merge(participants, learning)
    output, changes = run_student(everyone["student"], batch, targets, context.rng)
    models = {"student": student, **teachers}
    context = with_classifiers(context, models, everyone)
    state: Participants = {"student": changes}
    terms: dict[str, Terms] = {}
    metrics = {}
    connected: dict[str, Any] = {}
    others: dict[str, Any] = {}
    if viewed:
      others, state["student"] = student_views(
        student, everyone["student"], changes, viewed, batch, context.rng
      )
    if label_weight:
      terms["labels"] = label_weight * label_terms(labelled(output), batch, context)
    for d in distillations:
      ours, theirs = output, targets[d.name]
      if d.views:
        ours = {"": output, **{view: others[view] for view in d.views}}
      if d.adapter is not None:
        name = d.learning_participant
        inputs, key = (ours, theirs, batch), key_for(context.rng, name)
        adapter = _over_devices(d, everyone[name], context.axis_name)
        (ours, theirs), state[name] = learn(adapter, everyone[name], inputs, key, where=batch.mask)
      connected[d.name] = ours
      found = d.terms(ours, theirs, batch, context)
      if clash := sorted(terms.keys() & found.keys()):
        raise ConfigError(
          f"distillation {d.name!r}: there is another term {clash[0]!r}; a part is named "
          "NAME_PART, and every term needs a name of its own"
        )
      terms |= found
      for name, metric in d.metrics.items():
        what = f"metric {name!r} of {d.name!r}"
        metrics[f"{d.name}_{name}"] = call_with_mask(what, metric, ours, theirs, batch, context)
    if scored is not None:
      metrics["accuracy"] = accuracy(scored(everyone, output, connected), batch)
    total = sum((t.total for t in terms.values()), start=jax.numpy.float32(0))
    return total, Aux(terms, metrics, state)

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    if to_stage is not None:
      return {}
    return {"student": infer(student, participants["student"], images).logits}

  def export(participants: Participants) -> dict[str, Network]:
    if to_stage is not None:
      return {}
    return {"student": Network(student, participants["student"])}

  names = tuple(d.learning_participant for d in adapted)
  return Scheme(init, targets, loss, predict, (*learners, *names), export)


def _over_devices(
  distillation: Distillation, variables: Mapping[str, Any], axis_name: str | None
) -> nn.Module:
  """The adapter with its field `device_axis` set, over which it gathers what it keeps.

  Raises:
    ConfigError: for an adapter that keeps a memory and has no such field: the memories of the
      devices would differ.
  """
  adapter: Any = distillation.adapter
  if hasattr(adapter, "device_axis"):
    return adapter.clone(device_axis=axis_name)
  if MEMORY in variables and axis_name is not None:
    raise ConfigError(
      f"the adapter {type(adapter).__name__} of distillation {distillation.name!r} has a "
      f"collection {MEMORY!r} and no field device_axis: expected "
      "`device_axis: str | None = None`, for "
      "jaxkd.adapters.all_examples"
    )
  return adapter


def _own_logits(participants: Participants, output: Output, adapted: Mapping[str, Any]) -> Any:
  return output.logits


def with_classifiers(
  context: Context, models: Mapping[str, Model | Table], participants: Participants
) -> Context:
  """Return the context with the later layers of every network as `Context.classifiers`."""

  def classify(name: str, features: Any, from_stage: str = "") -> Any:
    model = models[name]
    stage = from_stage or tuple(getattr(plain(model), "stages", ()) or ("pooled",))[-1]
    return infer(model, participants[name], features, from_stage=stage).logits

  classifiers = {name: functools.partial(classify, name) for name in models}
  return dataclasses.replace(context, classifiers=classifiers)


def _student_learners(
  student: nn.Module,
  label_weight: float,
  to_stage: str | None,
  from_stage: str | None,
  image_shape: InputShape | None,
) -> tuple[str, ...]:
  """Return the paths of the student's parameters that learn."""
  if to_stage is None and from_stage is None:
    return ("student",)
  if to_stage is not None and from_stage is not None:
    raise ConfigError(f"to_stage is {to_stage!r} and from_stage is {from_stage!r}: expected one")
  if to_stage is not None and label_weight:
    raise ConfigError(f"label_weight is {label_weight}: up to {to_stage!r} there are no logits")
  if image_shape is None:
    named = f"to_stage is {to_stage!r}" if to_stage is not None else f"from_stage is {from_stage!r}"
    raise ConfigError(f"{named}: image_shape must be given with it")
  if to_stage is not None:
    return partial_learners(student, "student", to_stage, image_shape)
  assert from_stage is not None
  return later_learners(student, "student", from_stage, image_shape)


def _check_names(teachers: Iterable[str], distillations: Sequence[Distillation]) -> None:
  """Raise a ConfigError for names that are not unique, and for unknown teachers."""
  names = ["labels", *(d.name for d in distillations)]
  if len(set(names)) < len(names):
    raise ConfigError(f"the terms of the objective need different names, got {names}")
  for d in distillations:
    for teacher in d.teachers:
      if teacher not in teachers:
        raise ConfigError(
          f"distillation {d.name!r} names teacher {teacher!r}; there are {sorted(teachers)}"
        )
  participants = [
    "student",
    *teachers,
    *(d.learning_participant for d in distillations if d.adapter is not None),
    *(d.frozen_participant for d in distillations if d.teacher_adapter is not None),
  ]
  if len(set(participants)) < len(participants):
    raise ConfigError(f"participants need different names, got {participants}")


def _each(groups: Iterable[Iterable[str]]) -> Iterable[str]:
  """Return every name of the groups once, in order."""
  return dict.fromkeys(itertools.chain.from_iterable(groups))
