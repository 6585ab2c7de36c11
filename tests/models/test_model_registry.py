from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError


# Parameters with 100 classes: the first two from RepDistiller's table, the others from the specs
# of the golden values.
@pytest.mark.parametrize(
  ("name", "count"),
  [("resnet20", 278_324), ("resnet8x4", 1_233_540), ("resnet8", 83_892), ("resnet32x4", 7_433_860)],
)
def test_models_have_the_published_number_of_parameters(name, count):
  model = models.create(name, num_classes=100)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_model_names_give_depth_and_widths():
  families = {"": (16, 16, 32, 64), "x4": (32, 64, 128, 256), "_w4": (4, 4, 8, 16)}
  families |= {"_w8": (8, 8, 16, 32), "_w16": (16, 16, 32, 64)}
  for name in models.names():
    if not name.startswith("resnet"):
      continue
    depth = next(d for d in (110, 56, 44, 38, 32, 20, 14, 8) if name.startswith(f"resnet{d}"))
    model = models.create(name, num_classes=5)
    assert 6 * model.blocks + 2 == depth
    family, _, strided = name.removeprefix(f"resnet{depth}").partition("_s")
    assert model.widths == families[family]
    assert model.stem_stride == int(strided or 1)


def test_unknown_model_error_lists_the_nearest_names():
  with pytest.raises(ConfigError, match=r"unknown model 'resnet8x5': did you mean 'resnet8x4'"):
    models.create("resnet8x5", num_classes=10)


def test_unknown_option_error_lists_the_known_ones():
  with pytest.raises(
    ConfigError, match=r"option of model 'resnet8':.*known: axis_name, dropout, dtype"
  ):
    models.create("resnet8", num_classes=10, dtypes=jnp.bfloat16)


def test_model_without_classes_is_refused():
  with pytest.raises(ConfigError, match="num_classes must be at least 1, not 0"):
    models.create("resnet8", num_classes=0)


def test_options_reach_the_model():
  model = models.create("resnet8", num_classes=10, axis_name="devices", dtype=jnp.bfloat16)
  assert (model.num_classes, model.axis_name, model.dtype) == (10, "devices", jnp.bfloat16)
