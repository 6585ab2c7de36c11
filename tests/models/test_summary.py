"""summary: counts of rows and totals for every kind of model, by tracing alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models
from jaxkd.adapters import Gate, Projector
from jaxkd.errors import ConfigError
from jaxkd.evaluate import exit_costs, multiply_adds
from jaxkd.types import Output
from tests.tiny import TinyNet

IMAGE = (8, 8, 1)
PLAIN, WIDE = TinyNet(), TinyNet(width=8)
IMAGES = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)


def shapes(module, **arguments):
  return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **arguments), IMAGES)


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def with_heads(kind="linear"):
  output, _ = jax.eval_shape(PLAIN.init_with_output, jax.random.key(0), IMAGES)
  return models.with_exits(PLAIN, output, ["stage1", "stage2"], kind=kind, num_classes=3)


MODELS = {
  "plain": PLAIN,
  "a simkd student": models.ReusedClassifier(
    PLAIN, Projector((4, 4), 16), WIDE, "stage2", "stage2"
  ),
  "of two teachers": models.ReusedClassifiers(
    PLAIN,
    {"a": Projector((4, 4), 16), "b": Projector((4, 4), 16)},
    {"a": WIDE, "b": WIDE.copy()},
    {"a": 0.5, "b": 0.5},
    "stage2",
    "stage2",
  ),
  "tapped": models.tap(
    PLAIN, {"first": "conv1", "end": "classifier:input"}, logits=lambda output: output.logits
  ),
  "exits": with_heads(),
  "msdnet": models.MSDNet(
    3,
    blocks=2,
    base=1,
    step=1,
    channels=4,
    growth_rate=2,
    growth_factors=(1, 2),
    bottleneck_factors=(1, 2),
    scales=2,
    exit_width=8,
  ),
  "an exit": models.AtExit(with_heads(), 0),
  "branches": models.Branched(PLAIN, 2, "stage1"),
  "gated": models.GatedBranches(models.Branched(PLAIN, 2, "stage1"), Gate(2), "stage1"),
  "exits' mean": models.ExitEnsemble(with_heads()),
  "ensemble": models.Ensemble({"a": PLAIN, "b": WIDE}),
}


@functools.cache
def summed(kind):
  return models.summary(MODELS[kind], IMAGE)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_add_up_to_the_totals_of_the_model(kind):
  model, found = MODELS[kind], summed(kind)
  variables = shapes(model)

  def logits(variables, images):
    found = model.apply(variables, images, False)
    return [output.logits for output in (found if isinstance(found, tuple) else (found,))]

  assert found.parameters == count(variables)
  assert found.multiply_adds == multiply_adds(logits, variables, IMAGES)
  if found.rows:
    assert sum(row.parameters for row in found.rows) == found.parameters
    assert sum(row.multiply_adds for row in found.rows) == found.multiply_adds


def test_totals_are_those_of_the_published_table():
  found = models.summary(models.create("resnet20", num_classes=100), (32, 32, 3))
  assert (found.parameters, found.multiply_adds) == (278_324, 40_818_944)


@pytest.mark.parametrize("kind", ["plain", "a simkd student"])
def test_stage_row_counts_what_encode_adds_to_the_previous_stage(kind):
  model = MODELS[kind]
  rows = {row.name: row for row in summed(kind).rows}
  assert list(rows) == [*model.stages, "classifier"]
  output = jax.eval_shape(model.apply, shapes(model), IMAGES)
  parameters = cost = 0
  for stage in model.stages:
    encode = {"method": "encode", "to_stage": stage}
    variables = shapes(model, **encode)
    whole = multiply_adds(lambda v, x, e=encode: model.apply(v, x, **e), variables, IMAGES)
    assert rows[stage].parameters == count(variables) - parameters
    assert rows[stage].multiply_adds == whole - cost
    assert rows[stage].shape == output.features[stage].shape[1:]
    parameters, cost = count(variables), whole
  assert rows["classifier"].shape == (3,)


@pytest.mark.parametrize("kind", ["exits", "msdnet"])
def test_exit_row_counts_what_its_block_adds(kind):
  model = MODELS[kind]
  rows = summed(kind).rows
  costs = exit_costs(model, shapes(model), IMAGE)
  assert [row.name for row in rows] == [f"exit_{k}" for k in range(model.num_exits)]
  assert tuple(np.cumsum([row.multiply_adds for row in rows])) == costs


def test_layers_used_in_training_only_have_parameters_but_no_multiply_adds():
  model = with_heads("attention")
  variables, found = shapes(model), models.summary(model, IMAGE)
  assert sum(row.parameters for row in found.rows) == count(variables)
  adapter = variables["params"]["heads_stage1"]["adapter"]["kernel"]
  everything = multiply_adds(model.apply, variables, IMAGES)
  assert found.multiply_adds == everything - adapter.size


def test_trunk_of_branches_counts_once():
  rows, plain = summed("branches").rows, summed("plain").rows
  assert [row.name for row in rows] == ["stage1", "branch_0", "branch_1"]
  assert rows[0] == plain[0]
  assert rows[1].parameters == rows[2].parameters == sum(row.parameters for row in plain[1:])


def test_summary_traces_without_computing():
  class Watched(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
      assert isinstance(images, jax.core.Tracer)
      logits = nn.Dense(3)(images.mean((1, 2)))
      assert isinstance(logits, jax.core.Tracer)
      return Output(logits, {"last": images})

  found = models.summary(Watched(), IMAGE)
  assert [(row.name, row.parameters) for row in found.rows] == [("last", 0), ("classifier", 6)]


def test_given_variables_are_counted_and_the_batch_axis_is_ignored():
  variables = shapes(PLAIN)
  variables["params"]["extra"] = jax.ShapeDtypeStruct((7,), jnp.float32)
  found = models.summary(PLAIN, (16, *IMAGE), variables=variables)
  assert found.rows == summed("plain").rows
  assert found.multiply_adds == summed("plain").multiply_adds
  assert found.parameters == summed("plain").parameters + 7


def test_table_is_aligned():
  lines = str(summed("plain")).splitlines()
  assert len({len(line) for line in lines}) == 1
  assert lines[0].split() == ["stage", "features", "parameters", "multiply-adds"]
  assert lines[-1].split()[0] == "total"


@pytest.mark.parametrize("shape", [(8, 8), 8, "888", (8, 0, 1), (2.0, 8, 1)])
def test_shape_that_is_not_an_images_is_refused(shape):
  with pytest.raises(ConfigError, match=r"expected that of an image, \(H, W, C\)"):
    models.summary(PLAIN, shape)


def test_images_too_small_are_refused_by_the_model():
  with pytest.raises(ConfigError, match="4x4"):
    models.summary(models.create("resnet8_w4", num_classes=3), (2, 2, 1))


def test_error_for_a_module_without_output_mentions_tap():
  with pytest.raises(ConfigError, match=r"returns a .*, not an Output; jaxkd\.models\.tap"):
    models.summary(BareDense(), IMAGE)


class BareDense(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(3)(images)
