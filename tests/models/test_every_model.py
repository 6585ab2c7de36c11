"""Properties of every StagedModel, tested on a small model of each class."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import (
  MLP,
  VGG,
  CifarResNet,
  ClassTokenTransformer,
  ConvNeXt,
  DenseNet,
  EfficientNet,
  ImageNetMobileNetV2,
  ImageNetVGG,
  MobileNetV1,
  MobileNetV2,
  MobileNetV3,
  ResNet,
  ResNetD,
  ShuffleNetV1,
  ShuffleNetV2,
  TimmMobileNetV3,
  VisionTransformer,
  WideResNet,
)
from jaxkd.models.staged import StagedModel
from jaxkd.models.torch.layers import traced
from tests.methods.one_step import jit
from tests.models.drawn import drawn

CLASSES = 3
EXAMPLES: list[StagedModel] = [
  CifarResNet(1, (4, 4, 6, 8), CLASSES),
  WideResNet(1, (4, 6, 8, 10), CLASSES),
  VGG((1, 1, 1, 1, 1), (4, 4, 6, 6, 8), CLASSES),
  ResNet((1, 1, 1, 1), 2, True, True, CLASSES),
  ResNetD((1, 1, 1, 1), 4, True, True, CLASSES),
  MobileNetV1(4, (4, 4, 6, 6, 8), (1, 1, 1, 1), CLASSES),
  MobileNetV2(1 / 8, (1, 1, 1, 1, 1, 1, 1), 8, CLASSES),
  ShuffleNetV1(8, (16, 24, 32), (2, 1, 1), 2, CLASSES),
  ShuffleNetV2(4, (4, 6, 8), (2, 1, 1), 8, CLASSES),
  VisionTransformer(4, 8, 2, (1, 1, 1), CLASSES),
  ClassTokenTransformer(4, 8, 2, 4, CLASSES, 1e-6, True, True),
  TimmMobileNetV3(CLASSES, size="small", width=0.125),
  ConvNeXt((1, 1, 1, 1), (4, 4, 6, 8), CLASSES),
  DenseNet(2, (1, 1, 1, 1), 4, CLASSES),
  ImageNetVGG((1, 1, 1, 1, 1), CLASSES, (4, 4, 6, 6, 8), 5),
  ImageNetMobileNetV2(CLASSES, width=1 / 8),
  MobileNetV3(CLASSES),
  EfficientNet(CLASSES, width=1 / 8, depth=1 / 4),
  MLP((6, 5), CLASSES),
]
BATCH = 8


def name_of(model):
  return type(model).__name__


def image_shape(model):
  """The smallest image that the model accepts, twice as wide; 8x16 if `smallest` is 1.

  A model with learned positions takes squares only.
  """
  rows = model.smallest if model.smallest > 1 else 8
  square = isinstance(model, ClassTokenTransformer)
  return (rows, rows if square else 2 * rows, 2)


def in_steps(run, model, images, given=None):
  """(Output, updated variables) of every stage, and of the classifier at the end.

  Each step starts from one feature: that of the previous step, or of `given`. `encode` and `resume`
  over several stages run them in a row, so that a property of each step holds for any cut.
  """
  results = [run(images, to_stage=model.stages[0], method="encode")]
  for before, stage in zip(model.stages, [*model.stages[1:], None], strict=True):
    feature = (given or results[-1][0].features)[before]
    results.append(run(feature, from_stage=before, to_stage=stage, method="resume"))
  return results


@dataclasses.dataclass
class Run:
  """Results of one compiled program for one model.

  Attributes:
    model: the network, float32.
    variables: its variables.
    order: the names of its features in the order of its Output.
    whole: (Output, new statistics) in training.
    steps: the same step by step, from the whole network's features and from running statistics
      that are increased by 1.
    half: Output of the network in bfloat16, in evaluation.
    half_steps: the same step by step.
  """

  model: StagedModel
  variables: Any
  order: tuple[str, ...]
  whole: Any
  steps: Any
  half: Any
  half_steps: Any


# The largest programs, and classes that share their blocks with one that is not here.
LONG = (
  *("ImageNetMobileNetV2", "TimmMobileNetV3", "MobileNetV3", "EfficientNet", "ConvNeXt"),
  *("ResNetD", "ShuffleNetV1", "MobileNetV1", "ImageNetVGG", "DenseNet"),
)
PARAMS = [
  pytest.param(example, marks=[pytest.mark.long] * (type(example).__name__ in LONG))
  for example in EXAMPLES
]


@pytest.fixture(scope="module", params=PARAMS, ids=name_of)
def run(request):
  model = request.param
  half = model.clone(dtype=jnp.bfloat16)
  images = np.random.default_rng(0).normal(size=(BATCH, *image_shape(model))).astype(np.float32)
  variables = drawn(model, images)
  larger = {**variables, **jax.tree.map(lambda x: x + 1, {"batch_stats": statistics(variables)})}
  training = {"train": True, "mutable": ["batch_stats"]}
  order = []

  @jit
  def everything(variables, larger, images):
    whole = model.apply(variables, images, **training)
    order.extend(whole[0].features)
    train = functools.partial(model.apply, larger, **training)
    steps = in_steps(train, model, images, whole[0].features)
    evaluated = half.apply(variables, images)
    evaluate = functools.partial(half.apply, variables, mutable=["batch_stats"])
    return whole, steps, evaluated, in_steps(evaluate, model, images, evaluated.features)

  found = jax.device_get(everything(variables, larger, images))
  return Run(model, variables, tuple(order), *found)


def statistics(variables):
  return variables.get("batch_stats", {})


def test_every_class_has_an_example():
  known = [getattr(models, name) for name in models.__all__]
  staged = {kind for kind in known if isinstance(kind, type) and issubclass(kind, StagedModel)}
  assert staged == {type(model) for model in EXAMPLES}


def test_stages_are_the_features_shallow_to_deep(run):
  model, output = run.model, run.whole[0]
  assert model.stages == tuple(model.channels)
  assert tuple(name for name in run.order if name not in model.views) == model.stages
  assert set(run.order) == {*model.stages, *model.views}
  for stage in model.stages:
    feature = output.features[stage]
    ranks = {**dict.fromkeys(model.vectors, 2), **dict.fromkeys(model.sequences, 3)}
    assert feature.ndim == ranks.get(stage, 4)
    assert feature.shape[-1] == model.channels[stage]
  for stage, preactivation in output.preactivations.items():
    assert preactivation.shape == output.features[stage].shape
  assert output.logits.shape == (BATCH, CLASSES)


@pytest.mark.parametrize("mode", ["training in float32", "evaluation in bfloat16"])
def test_resume_from_every_stage_equals_the_whole_network(run, mode):
  training = mode.startswith("training")
  whole, steps = (run.whole[0], run.steps) if training else (run.half, run.half_steps)
  close = functools.partial(
    np.testing.assert_allclose, rtol=1e-3 if training else 0.1, atol=1e-4 if training else 0.1
  )
  preactivations = {}
  for stage, (output, _) in zip(run.model.stages, steps, strict=False):
    parts = {view for view, of in run.model.views.items() if of == stage}
    assert set(output.features) == {stage, *parts}
    assert output.logits is None
    for name, value in output.features.items():
      close(np.float32(value), np.float32(whole.features[name]))
    preactivations |= output.preactivations
  classified = steps[-1][0]
  assert {run.model.views.get(name) for name in classified.features} <= {"logits"}
  close(np.float32(classified.logits), np.float32(whole.logits))
  assert preactivations.keys() == whole.preactivations.keys()
  for stage, value in preactivations.items():
    close(np.float32(value), np.float32(whole.preactivations[stage]))


def test_signed_stages_are_exactly_those_with_negative_features(run):
  assert set(run.model.signed_stages) <= {*run.model.stages, *run.model.views}
  for stage, feature in run.whole[0].features.items():
    assert (feature.min() < 0) == (stage in run.model.signed_stages), stage
    assert feature.max() > 0, stage


def test_training_updates_every_batch_statistic_once(run):
  """Of the added 1 the momentum is left after one update, its square after two."""
  momentum = getattr(run.model, "momentum", 0.9)
  moved = flatten_dict(statistics(run.whole[1]))
  before = flatten_dict(statistics(run.variables))
  updated = set()
  for _, changes in run.steps:
    for path, value in flatten_dict(statistics(changes)).items():
      if not np.array_equal(value, before[path] + 1):
        assert path not in updated
        updated.add(path)
        np.testing.assert_allclose(value - moved[path], momentum, atol=1e-4)
  assert updated == set(before)


def test_outputs_with_dtype_bfloat16_are_finite_bfloat16(run):
  for output in (run.half, *(output for output, _ in run.half_steps)):
    for leaf in jax.tree.leaves(output):
      assert leaf.dtype == jnp.bfloat16
      assert np.all(np.isfinite(np.float32(leaf)))


def test_stages_partition_the_variables_of_the_network(run):
  images = jax.ShapeDtypeStruct((BATCH, *image_shape(run.model)), jnp.float32)

  def init(images):
    run_part = functools.partial(run.model.init_with_output, jax.random.key(0))
    return [variables for _, variables in in_steps(run_part, run.model, images)]

  parts = [
    {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
    for variables in jax.eval_shape(init, images)
  ]
  together = {path: shape for part in parts for path, shape in part.items()}
  assert len(together) == sum(map(len, parts))
  assert together == {path: leaf.shape for path, leaf in flatten_dict(run.variables).items()}


@pytest.mark.parametrize("model", EXAMPLES, ids=name_of)
def test_invalid_images_are_refused(model):
  def shapes(*shape, dtype=jnp.float32):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))

  rows, columns, channels = image_shape(model)
  small = model.smallest - 1
  message = f"images of {columns}x{small} are too small: this model takes {small + 1}x{small + 1}"
  with pytest.raises(ConfigError, match=message):
    shapes(2, columns, small, channels)
  with pytest.raises(ValueError, match=rf"\(B, H, W, C\), not \({rows}, {columns}, {channels}\)"):
    shapes(rows, columns, channels)
  with pytest.raises(ValueError, match="floating point, not uint8"):
    shapes(2, rows, columns, channels, dtype=jnp.uint8)


@pytest.mark.parametrize(
  ("kind", "fields", "message"),
  [
    (ConvNeXt, {"library": "keras"}, "library='keras': expected one of torchvision, timm"),
    (ConvNeXt, {"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\): expected 4 numbers of at least 1"),
    (ResNet, {"widen": 2}, "widen=2: expected 1 with bottleneck=False"),
    (ResNet, {"bottleneck": True, "widen": 0}, "widen=0: expected at least 1"),
    (MobileNetV3, {"size": "tiny"}, "size='tiny': expected one of small, large"),
    (TimmMobileNetV3, {"width": 0}, "width=0: expected a number > 0"),
  ],
)
def test_fields_that_fit_no_model_are_refused(kind, fields, message):
  sizes = {
    ConvNeXt: {"depths": (1, 1, 1, 1), "widths": (4, 4, 6, 8)},
    ResNet: {"blocks": (1, 1, 1, 1), "width": 2, "bottleneck": False, "imagenet": True},
  }.get(kind, {})
  with pytest.raises(ConfigError, match=message):
    kind(num_classes=CLASSES, **{**sizes, **fields})


@pytest.mark.parametrize(
  "model",
  [
    pytest.param(m, id=name_of(m), marks=[pytest.mark.long] * (name_of(m) in LONG))
    for m in EXAMPLES
    if m.torch_names
  ],
)
def test_weights_of_torch_are_read_in_their_order(model):
  images = jax.ShapeDtypeStruct((1, *image_shape(model)), jnp.float32)
  assert traced(model, images).flattened == {}


def test_wide_bottlenecks_are_wide_in_both_residual_networks():
  for kind in (ResNet, ResNetD):
    model = kind((1, 1, 1, 1), 4, True, True, CLASSES, widen=2)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert params["stage1_0"]["conv2"]["kernel"].shape == (3, 3, 8, 8)


def known_by_name():
  """The first name of each class; all names are created, but tracing all of them takes long."""
  chosen = {}
  for name in models.names():
    chosen.setdefault(type(models.create(name, num_classes=5)), name)
  return list(chosen.values())


def test_a_view_is_no_stage_to_continue_from():
  model = next(model for model in EXAMPLES if model.views)
  message = (
    "'stage2' is a part of 'block2' and not enough to continue from: expected one of embedded"
  )
  with pytest.raises(ConfigError, match=message):
    model.init(jax.random.key(0), jnp.ones((1, 2, 2, 8)), from_stage="stage2", method="resume")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.long] * name.startswith("torchvision_"))
    for name in known_by_name()
  ],
)
def test_registered_models_can_be_created(name):
  model = models.create(name, num_classes=5)
  images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  for output in outputs if isinstance(outputs, tuple) else (outputs,):
    assert output.logits.shape == (2, 5)
