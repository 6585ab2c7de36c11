"""The parameters that a part of a network needs, and its state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.networks import infer, later_learners, learn, partial_learners, select
from jaxkd.types import Output

SHAPE = (8, 8, 1)
# As experiments make it: its statistics are shared over a device axis that is not there yet.
RESNET = models.create("resnet8_w4", num_classes=3, axis_name="batch")


class Plain(nn.Module):
  """A user's model: neither `encode` nor `resume`, and a weight used twice."""

  @nn.compact
  def __call__(self, images, train=False):
    scale = self.param("scale", nn.initializers.ones, ())
    first = nn.relu(nn.remat(nn.Conv)(4, (3, 3), name="conv1")(scale * images))
    second = nn.relu(nn.Conv(4, (3, 3), name="conv2")(first))
    unused = nn.Dense(2, name="unused")(second.mean((1, 2)))
    logits = nn.Dense(3, name="classifier")(scale * second.mean((1, 2)))
    return Output(logits, {"stage1": first, "stage2": second, "unused": unused})


class Headless(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return Output(features={"map": nn.Conv(2, (3, 3))(images)})


def variables_of(module):
  images = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)


@pytest.mark.parametrize("stage", ["stage2", "pooled"])
def test_parameters_before_and_after_a_stage_are_those_of_encode_and_resume(stage):
  images = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
  features = jax.eval_shape(RESNET.apply, variables_of(RESNET), images).features[stage]

  def made(method, inputs, **arguments):
    """The parameters that a method makes when it is the first to run."""
    variables = jax.eval_shape(
      lambda x: RESNET.init(jax.random.key(0), x, method=method, **arguments), inputs
    )
    return set(flatten_dict(variables["params"]))

  variables = {"student": variables_of(RESNET)}
  before = select(variables, partial_learners(RESNET, "student", stage, SHAPE))["student"]
  after = select(variables, later_learners(RESNET, "student", stage, SHAPE))["student"]
  assert set(flatten_dict(before)) == made("encode", images, to_stage=stage)
  assert set(flatten_dict(after)) == made("resume", features, from_stage=stage)


def test_a_network_that_is_needed_entirely_is_one_learner():
  assert partial_learners(Headless(), "student", "map", SHAPE) == ("student",)
  with pytest.raises(ConfigError, match="'student' has no parameters after stage 'map'"):
    later_learners(Headless(), "student", "map", SHAPE)


def test_learners_of_a_model_without_encode_are_found_by_tracing():
  assert partial_learners(Plain(), "s", "stage1", SHAPE) == ("s/conv1", "s/scale")
  assert partial_learners(Plain(), "s", "stage2", SHAPE) == ("s/conv1", "s/conv2", "s/scale")
  # What the frozen part shares with the rest stands still.
  assert later_learners(Plain(), "s", "stage2", SHAPE) == ("s/classifier",)
  assert later_learners(Plain(), "s", "stage1", SHAPE) == ("s/classifier", "s/conv2")


def test_an_unknown_stage_is_refused():
  for find in (partial_learners, later_learners):
    with pytest.raises(ConfigError, match="unknown stage 'stage9'"):
      find(Plain(), "student", "stage9", SHAPE)


def test_the_state_holds_only_statistics_of_layers_that_ran():
  module = models.create("resnet8_w4", num_classes=3)
  variables, images = variables_of(module), jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
  output, changes = jax.eval_shape(
    lambda v, x: learn(module, v, x, jax.random.key(0), to_stage="stage1"), variables, images
  )
  assert output.logits is None
  assert set(changes["batch_stats"]) == {"stem_bn", "stage1_0"}
  pooled = jnp.ones((2, 16))
  output, changes = jax.eval_shape(
    lambda v, x: learn(module, v, x, jax.random.key(0), from_stage="pooled"), variables, pooled
  )
  assert output.logits.shape == (2, 3) and changes == {}


def test_a_model_without_resume_is_refused():
  with pytest.raises(ConfigError, match="Plain cannot go on from 'stage2': give it a resume"):
    infer(Plain(), {}, jnp.ones((1, 8, 8, 4)), from_stage="stage2")
