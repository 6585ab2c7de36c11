"""`Distillation`: one term of an objective, which compares outputs of student and teacher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.counts import class_weighted, label_share, refuse_parts, scaled
from jaxkd.errors import ConfigError
from jaxkd.methods._labels import refuse_multi_hot
from jaxkd.types import Array, Batch, Context, Output, Terms

# A number, or a function of the step (`jaxkd.methods.ramp`, or any optax schedule).
Weight = float | Callable[[Array], Array]
# (student, teacher, batch, context) -> Terms, or a mapping of named parts to Terms.
Loss = Callable[[Any, Any, Batch, Context], Terms | Mapping[str, Terms]]
Metric = Callable[[Any, Any, Batch, Context], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class WholeBatch:
  """A loss that is not a mean over examples, such as one that compares examples with each other.

  It computes its value from the examples of all devices, which it gathers over
  `context.axis_name`. It is refused if a device computes its batch in several parts.

  Attributes:
    loss: as `Distillation.loss`.
    reason: completes the error message "... which compares the examples of a batch".
  """

  loss: Loss
  reason: str = "which compares the examples of a batch"

  def __call__(
    self, student: Any, teacher: Any, batch: Batch, context: Context
  ) -> Terms | Mapping[str, Terms]:
    """The loss itself."""
    return self.loss(student, teacher, batch, context)


@dataclasses.dataclass(frozen=True)
class PerLabel:
  """A loss that is a mean over the labels of a batch, each weighted by `Batch.weights`.

  Examples without a label have no part in it. The value of a batch is the same for any
  distribution of its labels over parts and devices. `per_label` makes one.

  Attributes:
    loss: as `Distillation.loss`; sum w * value / sum w over the labels, w the weights of
      `label_weights`. Outside of parts (`context.counts`), the divisor is that of all devices.
  """

  loss: Loss

  def __call__(
    self, student: Any, teacher: Any, batch: Batch, context: Context
  ) -> Terms | Mapping[str, Terms]:
    """The loss itself."""
    return self.loss(student, teacher, batch, context)


@dataclasses.dataclass(frozen=True)
class Distillation:
  """One term of the objective of `jaxkd.methods.offline`.

  Attributes:
    name: name of its terms in reports; unique in a scheme.
    loss: (student, teacher, batch, context) -> Terms, or a mapping of parts to Terms, which are
      reported as "NAME_PART". `student` and `teacher` are the Outputs that the adapter returns. A
      mean over the examples that count in `batch.mask`, a `PerLabel` or a `WholeBatch`.
      `per_example`, `per_label` and `whole_batch` make such losses from the functions in
      `jaxkd.losses`.
    weight: factor of its terms; a function of the step for a ramp.
    teacher: participant; or a tuple of participants, whose Outputs are then a dict; or a mapping of
      participants to weights, for an Output with the weighted mean of their logits alone.
    adapter: Flax module `((student, teacher, batch), train) -> (student, teacher)`, or None. Its
      parameters learn with the student. Its other collections are state of the checkpoint: batch
      statistics are averaged over devices; a collection "memory" is not, and the module has to
      write the same values on every device: from `jaxkd.adapters.all_examples` over its field
      `device_axis`, which the step sets.
    adapter_name: participant that holds the adapter's variables; "" is NAME_adapter.
    teacher_adapter: Flax module `((teacher, batch), train) -> teacher` that does not learn, such as
      one trained in an earlier phase. It is applied outside the differentiated function.
    teacher_adapter_name: its participant; "" is NAME_teacher_adapter.
    teacher_parameters: name -> path in the teacher's parameters ("stage1_0/bn2/scale"), of one
      teacher: the loss reads them as features of the teacher's Output, (B, ...) with one copy for
      each example, so that they are cached as the other targets.
    gradients: (student, teacher): stages ("images" for the input) at which the loss reads
      `Output.gradients` of each.
    labelled: feature of the student that is the logits for the labels' term, where that is not
      `Output.logits`; "" otherwise.
    views: names of `Batch.views` that both networks see besides the inputs, one after the other, so
      that batch statistics are those of each. The loss then takes two dicts, view -> Output, in
      which "" is that of the inputs.
    metrics: name -> (student, teacher, batch, context) -> (sum, count), reported as "NAME_METRIC".
  """

  name: str
  loss: Loss
  weight: Weight = 1.0
  teacher: str | tuple[str, ...] | Mapping[str, float] = "teacher"
  adapter: nn.Module | None = None
  adapter_name: str = ""
  teacher_adapter: nn.Module | None = None
  teacher_adapter_name: str = ""
  teacher_parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
  gradients: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
  labelled: str = ""
  views: tuple[str, ...] = ()
  metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)

  @property
  def teachers(self) -> tuple[str, ...]:
    """Names of the teachers that it compares with."""
    return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

  @property
  def learning_participant(self) -> str:
    """Name of the participant that holds the adapter's variables."""
    return self.adapter_name or f"{self.name}_adapter"

  @property
  def frozen_participant(self) -> str:
    """Name of the participant that holds the teacher adapter's variables."""
    return self.teacher_adapter_name or f"{self.name}_teacher_adapter"

  def combined(self, outputs: Mapping[str, Output]) -> Any:
    """Return the teacher's Output, a dict of several Outputs, or the mean of several logits."""
    if isinstance(self.teacher, str):
      return outputs[self.teacher]
    if isinstance(self.teacher, tuple):
      return {name: outputs[name] for name in self.teacher}
    total = sum(self.teacher.values())
    mean: Any = sum(
      (weight / total) * jnp.asarray(outputs[name].logits) for name, weight in self.teacher.items()
    )
    return Output(logits=mean)

  def terms(self, student: Any, teacher: Any, batch: Batch, context: Context) -> dict[str, Terms]:
    """Return its weighted terms by the name under which each is reported.

    Raises:
      ConfigError: for a `WholeBatch` loss on a part of a batch; for a loss that ignores the mask of
        a batch, or returns neither Terms nor a mapping of Terms.
    """
    if isinstance(self.loss, WholeBatch):
      refuse_parts(repr(self.name), context, self.loss.reason)
    what = f"the loss of distillation {self.name!r}"
    found = call_with_mask(what, self.loss, student, teacher, batch, context)
    parts = found if isinstance(found, Mapping) else {"": found}
    for part, terms in parts.items():
      if not isinstance(terms, Terms):
        named = f", part {part!r}" if part else ""
        raise ConfigError(f"{what}{named}: expected Terms, got {type(terms).__name__}")
    weight = self.weight(context.step) if callable(self.weight) else self.weight
    return {
      f"{self.name}_{part}" if part else self.name: weight * self._share_of(terms, batch, context)
      for part, terms in parts.items()
    }

  def _share_of(self, terms: Terms, batch: Batch, context: Context) -> Terms:
    """Scale the terms of a part of a batch, or of a device's, such that their mean is the whole."""
    if isinstance(self.loss, WholeBatch):
      return terms
    if isinstance(self.loss, PerLabel):
      return label_share(class_weighted(batch, context.class_weights), context) * terms
    return scaled(terms, batch, context)


def per_example(kernel: Callable[..., Terms], /, **options: Any) -> Loss:
  """Return a `Loss` for a function of `jaxkd.losses` that is a mean over examples.

  Args:
    kernel: (student, teacher, where=mask, **options) -> Terms.
    **options: passed to it.
  """
  bound = functools.partial(kernel, **options)

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    return bound(student, teacher, where=batch.mask)

  return loss


def per_label(kernel: Callable[..., Any], /, *, what: str, **options: Any) -> PerLabel:
  """Return a `PerLabel` for a function of `jaxkd.losses` that reads the labels of a batch.

  Args:
    kernel: (student, teacher, labels, weights, axis_name=, where=mask, **options) -> Terms, or a
      mapping of parts to Terms.
    what: the loss in words, for the error of multi-hot labels, which it refuses.
    **options: passed to it.
  """
  bound = functools.partial(kernel, **options)

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Any:
    refuse_multi_hot(what, batch)
    axis_name, weights = label_weights(batch, context)
    return bound(student, teacher, batch.labels, weights, axis_name=axis_name, where=batch.mask)

  return PerLabel(loss)


def label_weights(batch: Batch, context: Context) -> tuple[str | None, Any]:
  """Return the device axis over which a `PerLabel` loss divides, and the weights of the labels.

  The weights are `Batch.weights` times the class weights of the context.
  """
  weights = class_weighted(batch, context.class_weights).weights
  return None if context.counts is not None else context.axis_name, weights


def whole_batch(
  kernel: Callable[..., Any],
  /,
  *,
  labels: bool = False,
  reason: str = "which compares the examples of a batch",
  **options: Any,
) -> WholeBatch:
  """Return a `WholeBatch` for a function of `jaxkd.losses` that needs the examples of all devices.

  Args:
    kernel: (student, teacher, axis_name=, where=mask, **options) -> Terms, or a mapping of parts to
      Terms; with `labels`, (student, teacher, labels, weights, ...).
    labels: whether the labels and their weights are passed to it.
    reason: as `WholeBatch.reason`.
    **options: passed to it.
  """
  bound = functools.partial(kernel, **options)

  def loss(student: Any, teacher: Any, batch: Batch, context: Context) -> Terms:
    given = {"labels": batch.labels, "weights": batch.weights} if labels else {}
    return bound(student, teacher, axis_name=context.axis_name, where=batch.mask, **given)

  return WholeBatch(loss, reason)


def call_with_mask(
  what: str,
  function: Callable[..., Any],
  student: Any,
  teacher: Any,
  batch: Batch,
  context: Context,
) -> Any:
  """Call a loss or a metric; if the batch has a mask, check that the function reads it.

  Raises:
    ConfigError: naming `what`, if the batch has a mask and the function does not read it.
  """
  if batch.mask is None:
    return function(student, teacher, batch, context)
  watched = _WatchedBatch(**{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)})
  reads: list[str] = []
  object.__setattr__(watched, "reads", reads)
  result = function(student, teacher, watched, context)
  if "mask" not in reads:
    raise ConfigError(f"batch.mask is given, but {what} does not read it: padding would count")
  return result


class _WatchedBatch(Batch):
  """A batch that records which of its fields are read."""

  def __getattribute__(self, name: str) -> Any:
    reads = object.__getattribute__(self, "__dict__").get("reads")
    if reads is not None and name != "reads":
      reads.append(name)
    return object.__getattribute__(self, name)


def _flatten(batch: _WatchedBatch) -> tuple[list[Any], bool]:
  arrays = [f.name for f in dataclasses.fields(Batch) if not f.metadata.get("static")]
  return [getattr(batch, name) for name in arrays], batch.multi_label


def _unflatten(multi_label: bool, leaves: Any) -> Any:
  return dataclasses.replace(Batch(*leaves), multi_label=multi_label)


# A loss may pass its batch to a function that jax transforms.
jax.tree_util.register_pytree_node(_WatchedBatch, _flatten, _unflatten)
