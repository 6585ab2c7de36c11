"""Initialise and run the networks of a scheme; select the parameters that learn."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.jaxprs import live_inputs
from jaxkd.padding import counted_statistics, without_padding
from jaxkd.preprocessing import Converted, inputs_of, plain
from jaxkd.shapes import InputShape, batched
from jaxkd.tables import Table
from jaxkd.types import Array, Batch, Network, Output, Participants


def select(participants: Participants, learners: Iterable[str]) -> Participants:
  """Return the parameters that receive gradients, without Flax's level "params".

  Args:
    participants: name -> Flax variables.
    learners: names of participants, or paths into their parameters ("student/head").

  Returns:
    {"student": params, "projector": {"conv1": params}, ...}

  Raises:
    ValueError: naming the learner and the existing names, if a path does not exist.

  >>> tree = {"student": {"params": {"stem": 1, "head": 2}, "batch_stats": {"stem": 3}}}
  >>> select(tree, ["student"])
  {'student': {'stem': 1, 'head': 2}}
  >>> select(tree, ["student/head"])
  {'student': {'head': 2}}
  """
  learning: dict[str, Any] = {}
  for learner in learners:
    name, *path = learner.split("/")
    if name not in participants:
      raise ValueError(f"learner {learner!r}: no participant {name!r} among {sorted(participants)}")
    source, target, key = participants[name]["params"], learning, name
    for step in path:
      if step not in source:
        raise ValueError(f"learner {learner!r}: no {step!r} among {sorted(source)}")
      target = target.setdefault(key, {})
      source, key = source[step], step
    target[key] = source
  return learning


def frozen(participants: Iterable[str], learners: Iterable[str]) -> tuple[str, ...]:
  """Return the participants without any learning parameter.

  >>> frozen(["teacher", "student", "projector"], ["student/head", "projector"])
  ('teacher',)
  """
  learning = {learner.partition("/")[0] for learner in learners}
  return tuple(name for name in participants if name not in learning)


def merge(participants: Participants, learning: Participants) -> Participants:
  """Return `participants` with their parameters replaced by those of `learning` (see `select`).

  >>> tree = {"student": {"params": {"stem": 1, "head": 2}, "batch_stats": {"stem": 3}}}
  >>> merge(tree, {"student": {"head": 9}})
  {'student': {'params': {'stem': 1, 'head': 9}, 'batch_stats': {'stem': 3}}}
  """
  return update(participants, {name: {"params": params} for name, params in learning.items()})


def update(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Return `tree` with the leaves of `changes` in it; nested dicts are merged, not replaced.

  >>> update({"student": {"params": 1, "batch_stats": 2}}, {"student": {"batch_stats": 5}})
  {'student': {'params': 1, 'batch_stats': 5}}
  """
  merged = dict(tree)
  for key, change in changes.items():
    both = isinstance(change, Mapping) and isinstance(tree.get(key), Mapping)
    merged[key] = update(tree[key], change) if both else change
  return merged


def key_for(rng: Array, participant: str) -> Array:
  """Return the key of one participant, which does not depend on the other participants.

  A student without a teacher and a distilled student of the same seed therefore have equal initial
  weights.
  """
  return jax.random.fold_in(rng, zlib.crc32(participant.encode()) & 0x7FFFFFFF)


# A model, or a model with conversion of its images to those that it was trained on.
Model = nn.Module | Converted


def initialize(module: Model | Table, rng: Array, participant: str, inputs: Any) -> dict[str, Any]:
  """Return initial variables of one participant; those of a table are its rows."""
  if isinstance(module, Table):
    return jax.tree.map(jnp.asarray, module.variables)
  key = key_for(rng, participant)
  keys = {"params": key, "dropout": key}
  drawn = plain(module).init(keys, inputs_of(module, inputs), train=False)
  return {"params": {}, **drawn}  # a frozen function has no parameters


def network_of(module: Model, variables: Mapping[str, Any]) -> Network:
  """Return a model as a Network, with its preprocessing if its images are converted."""
  wanted = module.wanted if isinstance(module, Converted) else None
  return Network(plain(module), variables, wanted)


def learn(
  module: Model,
  variables: Mapping[str, Any],
  inputs: Any,
  rng: Array,
  *,
  from_stage: str | None = None,
  to_stage: str | None = None,
  where: Any = None,
) -> tuple[Any, dict[str, Any]]:
  """Return a learner's output in training mode, and its new non-parameter state.

  The state holds only the arrays that the module replaced. It has no statistics of layers that did
  not run, so that averaging over devices does not change them.

  Args:
    module: a model, a model whose images are converted (`jaxkd.preprocessing`), or an adapter.
    variables: its Flax variables.
    inputs: images, or features.
    rng: key for dropout.
    from_stage: the inputs are this stage's features, from which the model resumes.
    to_stage: the deepest stage that is needed: a model with `encode` stops there, any other model
      runs to its end.
    where: `Batch.mask`: examples that are padding only are replaced by zeros, and excluded from
      the batch statistics.

  Raises:
    ConfigError: if the model has no `resume` and `from_stage` is given.
  """
  mutable = [collection for collection in variables if collection != "params"]
  if from_stage is None:
    inputs = inputs_of(module, inputs)
  model = plain(module)
  with counted_statistics(where):
    output, changes = model.apply(
      variables,
      without_padding(inputs, where),
      train=True,
      mutable=mutable,
      rngs={"dropout": rng},
      **_part(model, from_stage, to_stage),
    )
  before = flatten_dict(dict(variables))
  replaced = {
    path: value
    for path, value in flatten_dict(dict(changes)).items()
    if value is not before.get(path)
  }
  return output, unflatten_dict(replaced)


def infer(
  module: Model | Table,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  from_stage: str | None = None,
  to_stage: str | None = None,
) -> Any:
  """Return a network's output in evaluation mode; the arguments are those of `learn`.

  Raises:
    ConfigError: for a table of logits, which has no layers.
  """
  if isinstance(module, Table):
    raise ConfigError(f"{module} is a teacher without a network: it has logits of examples only")
  if from_stage is None:
    inputs = inputs_of(module, inputs)
  model = plain(module)
  return model.apply(variables, inputs, train=False, **_part(model, from_stage, to_stage))


def infer_batch(
  module: Model | Table, variables: Mapping[str, Any], participant: str, batch: Batch
) -> Output:
  """Return the output of a frozen network, or of a table, for a batch."""
  if isinstance(module, Table):
    return module.output(participant, variables, batch)
  return infer(module, variables, batch.inputs)


def _part(module: nn.Module, from_stage: str | None, to_stage: str | None) -> dict[str, Any]:
  """Return the options of `apply` with which a model runs only a part of its layers."""
  if from_stage is not None:
    if not hasattr(module, "resume"):
      raise ConfigError(
        f"{type(module).__name__} cannot go on from {from_stage!r}: give it a "
        "resume(features, from_stage, train) method (see jaxkd.models.CifarResNet)"
      )
    return {"from_stage": from_stage, "method": "resume"}
  if to_stage is not None and hasattr(module, "encode"):
    return {"to_stage": to_stage, "method": "encode"}
  return {}


def partial_learners(
  module: nn.Module, participant: str, to_stage: str, image_shape: InputShape
) -> tuple[str, ...]:
  """Return the parameters that a stage's features depend on.

  They are found by tracing, in evaluation mode, without computing anything. This works for any
  model, also for one that cannot stop at a stage.

  Args:
    module: `__call__(images, train) -> Output`; its `encode` is used if it has one.
    participant: its name in the scheme.
    to_stage: the deepest stage that is needed.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`).

  Returns:
    Learners for a Scheme: the participant itself if every parameter is needed, else the largest
    subtrees whose parameters are all needed, such as "student/stem_conv".

  Raises:
    ConfigError: if there is no such stage, or no parameter before it.

  >>> from jaxkd.models import create
  >>> partial_learners(create("resnet8", num_classes=3), "student", "stem", (8, 8, 1))
  ('student/stem_bn', 'student/stem_conv')
  """
  needed = _needed(module, image_shape, lambda output: _stage(output, to_stage), to_stage)
  return _nonempty(needed, participant, f"before stage {to_stage!r}")


def later_learners(
  module: nn.Module, participant: str, from_stage: str, image_shape: InputShape
) -> tuple[str, ...]:
  """Return the parameters after a stage: the logits depend on them, the stage's features do not.

  They are the complement of `partial_learners`, except for parameters that the logits do not need.

  >>> from jaxkd.models import create
  >>> later_learners(create("resnet8", num_classes=3), "student", "pooled", (8, 8, 1))
  ('student/classifier',)
  """
  before = _needed(module, image_shape, lambda output: _stage(output, from_stage))
  everything = _needed(module, image_shape, lambda output: output.logits)
  after = jax.tree.map(lambda needed, earlier: needed and not earlier, everything, before)
  return _nonempty(after, participant, f"after stage {from_stage!r}")


def _needed(
  module: nn.Module,
  image_shape: InputShape,
  result: Callable[[Output], Any],
  to_stage: str | None = None,
) -> Any:
  """Return the tree of the module's parameters, True for those that `result` depends on."""
  images = batched(image_shape, (1,))
  variables = jax.eval_shape(
    lambda rng, images: initialize(module, rng, "module", images), jax.random.key(0), images
  )
  traced = jax.make_jaxpr(lambda v, x: result(infer(module, v, x, to_stage=to_stage)))(
    variables, images
  )
  leaves, structure = jax.tree.flatten(variables)
  return jax.tree.unflatten(structure, live_inputs(traced.jaxpr)[: len(leaves)])["params"]


def _stage(output: Output, stage: str) -> Any:
  if stage not in output.features:
    raise unknown_name("stage", stage, output.features)
  return output.features[stage]


def _nonempty(needed: Any, participant: str, where: str) -> tuple[str, ...]:
  learners = tuple(_subtrees(needed, participant))
  if not learners:
    raise ConfigError(f"{participant!r} has no parameters {where}: nothing would learn")
  return learners


def _subtrees(needed: Any, path: str) -> Iterator[str]:
  """Yield the largest subtrees whose leaves are all needed."""
  leaves = jax.tree.leaves(needed)
  if leaves and all(leaves):
    yield path
  elif isinstance(needed, Mapping):
    for name, part in needed.items():
      yield from _subtrees(part, f"{path}/{name}")
