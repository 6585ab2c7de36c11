"""The types of jaxkd: outputs of models, terms of losses, batches, networks and schemes.

Everything here is a pytree or a tuple of pure functions, and needs jax alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

Array = jax.Array

# {"teacher": variables, "student": variables, "kd_adapter": variables, ...}: one pytree with every
# network of a scheme, each as a Flax variable dict ({"params": ..., "batch_stats": ...}).
Participants = dict[str, Any]

# The collection of variables that is not averaged over devices: a module that has it writes the
# same values on every device.
MEMORY = "memory"

# The collection of variables of a teacher that is a table of logits (`jaxkd.tables.Table`).
TABLE = "table"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """The output of a model. Every part is optional: `Output(logits=z)` is enough for a logit loss.

  Models with several exits or branches return a tuple of Outputs, shallowest first.

  Attributes:
    logits: class scores, (B, C), or of every position: (B, T, C), (B, H, W, C).
    features: stage name -> post-activation array, (B, H, W, C), (B, T, C) or (B, C). `"pooled"` is
      the input of the classifier.
    preactivations: the same stages before their last activation.
    gradients: stage name -> d(sum of cross-entropies) / d(its features), `"images"` for the input;
      only if a loss needs them.
  """

  logits: Array | None = None
  features: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  preactivations: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  gradients: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terms:
  """The value of a loss: a feature term and a logit term, two scalars.

  Terms can be added and scaled, so that a composed objective reads as in a paper.

  >>> terms = 0.9 * Terms(logit=2.0) + Terms(feature=3.0)
  >>> terms
  Terms(feature=3.0, logit=1.8)
  >>> terms.total
  4.8
  """

  feature: ArrayLike = 0.0
  logit: ArrayLike = 0.0

  @property
  def total(self) -> Any:
    """The sum of both terms, which is differentiated."""
    return self.feature + self.logit

  def __add__(self, other: Terms) -> Terms:
    if not isinstance(other, Terms):
      return NotImplemented
    return Terms(self.feature + other.feature, self.logit + other.logit)

  def __radd__(self, other: Any) -> Terms:
    # sum([...]) starts with the integer 0.
    return self if isinstance(other, int) and other == 0 else NotImplemented

  def __mul__(self, weight: ArrayLike) -> Terms:
    return Terms(_scaled(self.feature, weight), _scaled(self.logit, weight))

  __rmul__ = __mul__


def _scaled(term: ArrayLike, weight: ArrayLike) -> Any:
  # A term that a loss does not have is the Python number 0.0; it stays one and is not reported.
  return term if isinstance(term, float) and term == 0 else term * weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """The examples of one step.

  Attributes:
    inputs: inputs of the models, a pytree of arrays with leading axis B; images are (B, H, W, C),
      float, or uint8 as stored.
    labels: class numbers with the leading axes of the logits, (B,) or more, int32; or class
      probabilities (B, C) after mixing augmentations; or multi-hot ones, see `multi_label`.
    weights: (B,), or the shape of the class numbers, float32: weights of the labels; 0 marks
      unlabelled examples or positions.
    indices: (B,) int32, positions of the examples in their data set (cached targets, memory banks).
    epochs: (B,) int32, number of earlier epochs of each example (its view); None if not needed.
    mask: (B,), or the leading axes of dense logits. 0 or False marks padding, which is excluded
      from all losses, metrics and statistics, and may have any value. None is no padding.
    views: name -> another version of the same inputs (a strong augmentation, another resolution),
      (B, ...), or inputs of other examples of the same classes, for methods that compare several.
    tables: participant -> the rows of this batch in its table (`jaxkd.tables.Table`), for tables
      that devices do not hold in their state.
    multi_label: True if `labels` (B, C) are multi-hot: a number in 0..1 for every class, which may
      apply together. It is no array, but part of the structure.
  """

  inputs: Any
  labels: Any
  weights: Any
  indices: Any
  epochs: Any = None
  mask: Any = None
  views: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  multi_label: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchIndices:
  """The examples of one step by position, if the examples are resident on the device.

  Attributes:
    positions: (B,) int32, positions within the N training examples.
    epochs: (B,) int32, as in Batch.
    partners: name of a view -> (B,) int32, positions of the examples in it.
  """

  positions: Any
  epochs: Any
  partners: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
  """Counts of labels, positions and examples of a batch, as means over its parts on all devices.

  Attributes:
    labels: sum of the labels' weights.
    positions: number of rows of logits that are no padding.
    examples: number of examples with a position that is no padding.
  """

  labels: Array
  positions: Array
  examples: Array


@dataclasses.dataclass(frozen=True)
class Context:
  """Inputs of a loss besides outputs and data.

  Attributes:
    rng: a PRNG key of this step and device.
    step: number of earlier updates in this phase, for ramps.
    axis_name: the device axis, for quantities of the global batch; None outside a mapped step.
    parts: number of parts of a device's batch on which the loss is computed in sequence
      (`jaxkd.train.training_step`); the step takes the mean over them.
    counts: counts of the whole batch, to scale a mean over a part; None if there is one part and
      no mask.
    classifiers: participant -> (features, from_stage) -> logits: its layers after a stage, by
      default after the last stage, in evaluation mode. The scheme sets it for its losses; it does
      not pass through jax's transformations.
    label_smoothing: share of every label that is spread evenly over the classes, for schemes that
      have no smoothing of their own.
    class_weights: weight of each class in the cross-entropy of labels, and in other means over
      labels, C numbers; () weights all by 1.
  """

  rng: Array
  step: Array
  axis_name: str | None = None
  parts: int = 1
  counts: Counts | None = None
  classifiers: Mapping[str, Callable[..., Array]] = dataclasses.field(default_factory=dict)
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()


jax.tree_util.register_pytree_node(
  Context,
  # Functions over traced variables cannot be leaves of a pytree.
  lambda context: (
    (context.rng, context.step, context.counts),
    (context.axis_name, context.parts, context.label_smoothing, context.class_weights),
  ),
  lambda static, arrays: Context(
    arrays[0], arrays[1], *static[:2], arrays[2], label_smoothing=static[2], class_weights=static[3]
  ),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
  """The result of a scheme's loss besides the scalar.

  Attributes:
    terms: loss name -> its Terms, already weighted; the sum of their totals is the scalar.
    metrics: name -> (sum, count), so that averages are unbiased over batches and devices.
    state: the learners' new non-parameter state, as a partial Participants tree
      ({"student": {"batch_stats": ...}}).
  """

  terms: Mapping[str, Terms]
  metrics: Mapping[str, tuple[Array, Array]]
  state: Participants


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Normalisation and size of the images of a network: pixel values x become (x - mean) / std.

  `jaxkd.preprocessing` converts one into another.

  Attributes:
    mean: one number per channel, for pixel values scaled to 0..1.
    std: likewise, greater than 0.
    image_size: (H, W).
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: tuple[int, int]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return (*self.image_size, len(self.mean))


class _ModuleAndVariables(NamedTuple):
  module: Any
  variables: Mapping[str, Any]


class Network(_ModuleAndVariables):
  """A model and its weights, independent of the scheme that trained it.

  It unpacks into two: `module, variables = network`.

  Attributes:
    module: a linen module whose `__call__(inputs, train)` returns an Output.
    variables: its Flax variable dict.
    preprocessing: the images that it was trained on; None if that is unknown, or if they are
      the images of the current run.
  """

  preprocessing: Preprocessing | None

  def __new__(
    cls, module: Any, variables: Mapping[str, Any], preprocessing: Preprocessing | None = None
  ) -> Network:
    """Create a network; `preprocessing` is not an element of the tuple."""
    network = super().__new__(cls, module, variables)
    network.preprocessing = preprocessing
    return network

  def _replace(self, **changes: Any) -> Network:
    return Network(**{**self._asdict(), "preprocessing": self.preprocessing, **changes})

  def __reduce__(self) -> tuple[Any, ...]:
    return Network, (self.module, self.variables, self.preprocessing)


class Scheme(NamedTuple):
  """A way to train one or several networks: pure functions over one pytree of participants.

  Attributes:
    init: (rng, batch) -> Participants. Initial variables of all participants.
    targets: (participants, batch) -> pytree. Everything that depends on frozen participants and the
      batch alone. It runs outside the differentiated function and in evaluation mode, so that a
      teacher's parameters and batch statistics do not change.
    loss: (learning, participants, batch, targets, context) -> (scalar, Aux). `learning` holds the
      learners' parameters (`jaxkd.networks.select`), with respect to which it is differentiated.
    predict: (participants, inputs) -> {predictor: logits}, of all predictors.
    learners: the participants, or subtrees such as "student/head", that receive gradients.
    export: participants -> {predictor: Network}, the predictors as networks of their own.
  """

  init: Callable[[Array, Batch], Participants]
  targets: Callable[[Participants, Batch], Any]
  loss: Callable[[Participants, Participants, Batch, Any, Context], tuple[Array, Aux]]
  predict: Callable[[Participants, Array], dict[str, Array]]
  learners: tuple[str, ...]
  export: Callable[[Participants], dict[str, Network]]
