"""The method ofd: the batch normalisations that it finds, and the teacher's parameters it reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.losses import batch_norm_margin
from jaxkd.methods import Distillation, offline
from jaxkd.methods._norms import norms_before
from jaxkd.models import create
from jaxkd.types import Terms
from tests.methods.one_step import start
from tests.recorded_values.cases import PAIRS, Pair, schemes_of
from tests.tiny import TinyNet, batch


@pytest.mark.parametrize(
  ("model", "size", "wanted"),
  [
    ("resnet14_w8", 8, {"stem": "stem_bn", "stage1": "stage1_1/bn2", "stage3": "stage3_1/bn2"}),
    ("wrn_10_1", 8, {"stem": "stage1_0/bn1", "stage1": "stage2_0/bn1", "stage3": "last_bn"}),
    ("cifar_resnet50", 8, {"stage4": "stage4_2/bn3"}),
  ],
)
def test_norms_are_those_of_the_published_code(model, size, wanted):
  found = norms_before(create(model, num_classes=3), (size, size, 3), list(wanted))
  assert found == wanted


def test_a_stage_without_a_norm_is_left_out():
  assert norms_before(TinyNet(norm=False), (6, 6, 1), ["stage1"]) == {}
  assert norms_before(TinyNet(), (6, 6, 1), ["stage1", "stage2"]) == {
    "stage1": "bn1",
    "stage2": "bn2",
  }


def test_a_loss_reads_the_teachers_parameters_for_each_example():
  seen = {}

  def loss(student, teacher, batch, context):
    seen.update(teacher.features)
    return Terms(feature=jnp.float32(0) * jnp.sum(batch.mask if batch.mask is not None else 0))

  paths = {"stage1_scale": "bn1/scale", "stage1_bias": "bn1/bias"}
  term = Distillation("x", loss, teacher_parameters=paths)
  scheme = offline(TinyNet(), {"teacher": TinyNet(width=6)}, [term])
  participants = start(scheme)
  participants["teacher"]["params"]["bn1"]["scale"] = jnp.arange(6.0)
  found = scheme.targets(participants, batch())["x"].features
  np.testing.assert_array_equal(found["stage1_scale"], np.tile(np.arange(6.0), (8, 1)))
  wrong = Distillation("x", loss, teacher_parameters={"a": "bn7/scale"})
  with pytest.raises(ConfigError, match=r"distillation 'x' reads the parameter 'bn7/scale' of 'te"):
    offline(TinyNet(), {"teacher": TinyNet(width=6)}, [wrong]).targets(participants, batch())


def test_a_teacher_without_norms_needs_margins_of_the_batch():
  with pytest.raises(ConfigError, match=r"compares preactivations, and the teacher has none"):
    schemes_of("ofd", Pair("vit_tiny", "resnet8_w4", (16, 16, 3)))
  assert methods.METHODS["ofd"].needs == "preactivations"
  scheme = schemes_of("ofd/margins='batch'", PAIRS["resnets"])["distilled"]
  assert "ofd_adapter" in scheme.learners


def test_margins_follow_the_teachers_weights():
  scheme = schemes_of("ofd", PAIRS["resnets"])["distilled"]
  shapes = jax.eval_shape(scheme.init, jax.random.key(0), _images())
  found = jax.eval_shape(scheme.targets, shapes, _images())["ofd"].features
  assert found["stage3_scale"].shape == (2, 32)
  assert batch_norm_margin(jnp.ones((2, 3)), jnp.zeros((2, 3))).shape == (2, 3)


def _images():
  data = batch(2)
  return type(data)(jnp.zeros((2, 8, 8, 1)), data.labels, data.weights, data.indices)
