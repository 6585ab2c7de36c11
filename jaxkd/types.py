"""The vocabulary of jaxkd: what models return, what losses return, and what a scheme is.

Everything here is a pytree or a tuple of pure functions, and needs nothing but jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

Array = jax.Array

# {"teacher": variables, "student": variables, "connector": variables, ...}: one pytree with every
# network of a scheme, each as a Flax variable dict ({"params": ..., "batch_stats": ...}).
Participants = dict[str, Any]

# The collection of variables that is not averaged over devices: the module that writes it writes
# the same values on every device.
MEMORY = "memory"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """What a model returns. Every part is optional: `Output(logits=z)` serves a logit loss.

  Models with several exits or branches return a tuple of Outputs, shallowest first.

  Attributes:
    logits: class scores, (B, C).
    features: stage name -> post-activation array, (B, H, W, C) or (B, C). `"pooled"` is what the
      classifier sees.
    preactivations: the same stages before their last activation.
    gradients: stage name -> d(sum of cross-entropies) / d(its features), `"images"` for the input;
      only where a scheme was asked for them.
  """

  logits: Array | None = None
  features: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  preactivations: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  gradients: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terms:
  """What a loss returns: a feature term and a logit term, two scalars.

  Terms add and scale, so that a composed objective reads as it is written in a paper.

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
    """The sum of both terms, what is differentiated."""
    return self.feature + self.logit

  def __add__(self, other: Terms) -> Terms:
    if not isinstance(other, Terms):
      return NotImplemented
    return Terms(self.feature + other.feature, self.logit + other.logit)

  def __radd__(self, other: Any) -> Terms:
    # sum([...]) starts from the integer 0.
    return self if isinstance(other, int) and other == 0 else NotImplemented

  def __mul__(self, weight: ArrayLike) -> Terms:
    return Terms(_scaled(self.feature, weight), _scaled(self.logit, weight))

  __rmul__ = __mul__


def _scaled(term: ArrayLike, weight: ArrayLike) -> Any:
  # The Python zero of a term that a loss does not have stays one: nobody reports it.
  return term if isinstance(term, float) and term == 0 else term * weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Examples of one step.

  Attributes:
    images: (B, H, W, C), float, or uint8 as stored.
    labels: class numbers (B,), int32; or class probabilities (B, C) after mixing augmentations.
    weights: (B,) float32, how much a label counts; 0 marks unlabelled examples.
    indices: (B,) int32, the examples' places in their data set (cached targets, memory banks).
    epochs: (B,) int32, how often each was trained on before (views of it); None where not asked.
    mask: (B,), or the leading axes of dense logits; what counts at all. Padding, 0 or False, is out
      of every term of every loss, every metric and every statistic, and may hold anything. None
      counts all.
    views: name -> another version of the same images (a strong augmentation, another resolution),
      (B, ...), for methods that compare several.
  """

  images: Any
  labels: Any
  weights: Any
  indices: Any
  epochs: Any = None
  mask: Any = None
  views: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchIndices:
  """Examples of one step by their places, where the device has the examples themselves.

  Attributes:
    positions: (B,) int32, within the N examples that are trained on.
    epochs: (B,) int32, as a Batch's.
  """

  positions: Any
  epochs: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
  """How much a batch holds, as means over its parts on all devices.

  Attributes:
    labels: the sum of the labels' weights.
    positions: the number of logits' rows that the mask counts.
    examples: the number of examples of which the mask counts a position.
  """

  labels: Array
  positions: Array
  examples: Array


@dataclasses.dataclass(frozen=True)
class Context:
  """What a loss may need besides data.

  Attributes:
    rng: a PRNG key of this step and device.
    step: how many updates this stage has made, for ramps.
    axis_name: the device axis, for quantities of the global batch; None outside a mapped step.
    parts: how many parts of a device's batch the loss is computed on, one after the other
      (`jaxkd.train.training_step`); the step takes the mean over them.
    counts: of the whole batch, which a mean over a part is scaled by; None where there is one part
      and no mask.
    classifiers: participant -> (features, from_stage) -> logits: its layers after a stage, by
      default after the last one, in evaluation mode. The scheme sets it for its losses; it does
      not pass through jax's transformations.
  """

  rng: Array
  step: Array
  axis_name: str | None = None
  parts: int = 1
  counts: Counts | None = None
  classifiers: Mapping[str, Callable[..., Array]] = dataclasses.field(default_factory=dict)


jax.tree_util.register_pytree_node(
  Context,
  # Functions over traced variables are no part of a pytree.
  lambda context: ((context.rng, context.step, context.counts), (context.axis_name, context.parts)),
  lambda static, arrays: Context(arrays[0], arrays[1], *static, arrays[2]),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
  """What a scheme's loss returns beside the scalar.

  Attributes:
    terms: loss name -> its Terms, already weighted: their totals sum to the scalar.
    metrics: name -> (sum, count), so that averages are unbiased over batches and devices.
    state: the learners' new non-parameter state, as a partial Participants tree
      ({"student": {"batch_stats": ...}}).
  """

  terms: Mapping[str, Terms]
  metrics: Mapping[str, tuple[Array, Array]]
  state: Participants


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The images that a network was trained on: pixel values in 0..1, (x - mean) / std, of one size.

  `jaxkd.preprocessing` converts one into another.

  Attributes:
    mean: one number per channel, of pixel values scaled to 0..1.
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
  """A model and its weights, ready to leave the scheme it was trained in.

  It unpacks as two: `module, variables = network`.

  Attributes:
    module: a linen module whose `__call__(images, train)` returns an Output.
    variables: its Flax variable dict.
    preprocessing: the images that it was trained on; None where that is unknown, or where they are
      the images of the current run.
  """

  preprocessing: Preprocessing | None

  def __new__(
    cls, module: Any, variables: Mapping[str, Any], preprocessing: Preprocessing | None = None
  ) -> Network:
    """Makes a network; `preprocessing` is no element of the tuple."""
    network = super().__new__(cls, module, variables)
    network.preprocessing = preprocessing
    return network

  def _replace(self, **changes: Any) -> Network:
    return Network(**{**self._asdict(), "preprocessing": self.preprocessing, **changes})

  def __reduce__(self) -> tuple[Any, ...]:
    return Network, (self.module, self.variables, self.preprocessing)


class Scheme(NamedTuple):
  """Who learns from whom, as pure functions over one pytree of participants.

  Attributes:
    init: (rng, batch) -> Participants. Fresh variables for everyone.
    targets: (participants, batch) -> pytree. All that depends on frozen participants and the
      batch alone. Runs outside the differentiated function and in eval mode, so that a teacher
      is neither trained nor has its batch statistics moved.
    loss: (learning, participants, batch, targets, context) -> (scalar, Aux). `learning` holds the
      learners' parameters (`jaxkd.networks.select`) and is what is differentiated.
    predict: (participants, images) -> {predictor: logits}, every named predictor.
    learners: the participants, or subtrees such as "student/head", that receive gradients.
    export: participants -> {predictor: Network}, the predictors that can stand alone.
  """

  init: Callable[[Array, Batch], Participants]
  targets: Callable[[Participants, Batch], Any]
  loss: Callable[[Participants, Participants, Batch, Any, Context], tuple[Array, Aux]]
  predict: Callable[[Participants, Array], dict[str, Array]]
  learners: tuple[str, ...]
  export: Callable[[Participants], dict[str, Network]]
