"""Prefixes, parts and counters of PyTorch checkpoints, and names of the user's own modules."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.models import classes_in, from_torch

STATE = {
  "conv.weight": np.ones((4, 3, 3, 3), np.float32),
  "fc.weight": np.arange(8, dtype=np.float32).reshape(2, 4),
  "fc.bias": np.ones(2, np.float32),
}


class Own(nn.Module):
  classes: int = 2
  torch_names = ((r"conv", "stem"), (r"fc", "head"))

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
    return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class Unnamed(Own):
  torch_names = ()


def prefixed(prefix, state=None):
  return {f"{prefix}{name}": value for name, value in (state or STATE).items()}


def equal(variables):
  np.testing.assert_array_equal(variables["params"]["head"]["kernel"], STATE["fc.weight"].T)
  return True


@pytest.mark.parametrize(
  "prefix", ["module.", "module.module.", "model.", "_orig_mod.", "_orig_mod.module.model."]
)
def test_prefixes_in_any_order_are_removed(prefix):
  counters = {"n_averaged": np.int64(3), f"{prefix}fc.total_ops": np.zeros(1)}
  assert equal(from_torch({**prefixed(prefix), **counters, "epoch": 3, "arch": None}, Own()))
  assert classes_in(prefixed(prefix), Own) == 2


def test_prefixes_of_some_names_are_refused():
  mixed = {**prefixed("module."), "fc.bias": STATE["fc.bias"]}
  del mixed["module.fc.bias"]
  with pytest.raises(ConfigError, match=r"2 unknown .*2 missing"):
    from_torch(mixed, Own())


@pytest.mark.parametrize(
  ("source", "part"),
  [
    ({"model": STATE, "model_ema": prefixed("module.")}, "model_ema"),
    ({"student": STATE, "teacher": prefixed("module.")}, "teacher"),
    ({"model": {"student": STATE, "teacher": STATE}}, "student"),
    ({**prefixed("student."), **prefixed("teacher.")}, "teacher"),
    ({"state_dict": {**prefixed("module.ema."), **prefixed("module.online.")}}, "ema"),
  ],
)
def test_part_chooses_and_is_asked_for(source, part):
  assert equal(from_torch(source, Own(), part=part))
  with pytest.raises(ConfigError, match=rf"part=.*{part}|{part}.*part="):
    from_torch(source, Own())
  with pytest.raises(ConfigError, match=rf"has no part 'x': expected .*{part}"):
    from_torch(source, Own(), part="x")


def test_an_entry_that_shares_no_name_is_no_rival():
  others = {"criterion": {"weight": np.ones(3)}, "optimizer": {"state": STATE}}
  assert equal(from_torch({"model": STATE, **others}, Own()))


@pytest.mark.parametrize(
  "names",
  [{r"conv": "stem", r"f(c)": "head"}, lambda name: {"conv": "stem", "fc": "head"}.get(name)],
)
def test_names_of_own_modules(names):
  assert equal(from_torch(STATE, Unnamed(), names=names))
  assert classes_in(STATE, Unnamed, names=names) == 2


def test_names_may_lead_to_those_of_a_known_architecture():
  assert equal(from_torch(prefixed("backbone."), Own(), names={r"backbone\.(.*)": r"\1"}))


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ({r"conv": "stem"}, r"2 unknown \(fc.weight, fc.bias\)"),
    ({r"conv|fc": "head"}, "for one variable"),
    ({r"conv(": "stem"}, "not a regular expression"),
    ({r"conv": r"\3"}, "names: the path for 'conv'"),
    ({3: "stem"}, "expected a regular expression and a path"),
    ("stem", "expected a mapping"),
    (lambda name: 3, "returned 3"),
  ],
)
def test_bad_names_are_refused(names, message):
  with pytest.raises(ConfigError, match=message):
    from_torch(STATE, Unnamed(), names=names)


def test_another_member_of_a_family_is_refused():
  small = models.create("torchvision_mobilenet_v3_small", num_classes=2)
  shapes = jax.eval_shape(small.init, jax.random.key(0), np.ones((1, 32, 32, 3), np.float32))
  assert shapes["params"]["hidden"]["kernel"].shape == (576, 1024)
  with pytest.raises(ConfigError, match="not the weights of this MobileNetV3"):
    from_torch({"features.0.0.weight": np.ones((24, 3, 3, 3), np.float32)}, small)


def test_published_sizes_of_images():
  assert models.published_preprocessing("torchvision_efficientnet_b1").image_size == (240, 240)
  assert models.published_preprocessing("torchvision_vgg11_bn").image_size == (224, 224)
