"""CAT-KD: definition, parts of the classes, the code's counts, and maps of networks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import adaptive_average_pool, class_activation_mse, class_attention
from jaxkd.methods.catkd import class_maps
from jaxkd.models import CifarResNet, MobileNetV2, VisionTransformer
from jaxkd.networks import infer
from jaxkd.types import Output
from tests.models.drawn import drawn

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected(student, teacher, chosen=None, normalize=True, binarize=False, resolution=2):
  """The loss by the paper's formula; `chosen` are the classes of each example."""
  if binarize:
    teacher = (teacher - np.abs(teacher).mean((1, 2), keepdims=True) > 0).astype("float32")
  s, t = (np.float64(adaptive_average_pool(x, resolution, resolution)) for x in (student, teacher))
  if normalize:
    s, t = (x / np.maximum(np.sqrt((x**2).sum((1, 2), keepdims=True)), 1e-12) for x in (s, t))
  squares = (s - t) ** 2
  if chosen is None:
    return squares.mean()
  return np.mean([squares[i][..., list(classes)].mean() for i, classes in enumerate(chosen)])


@pytest.mark.parametrize("options", [{}, {"normalize": False, "resolution": 3}, {"binarize": True}])
def test_loss_equals_the_definition(options):
  s, t = draw(3, 4, 4, 5), draw(3, 5, 5, 5, seed=1)
  value = jit(functools.partial(class_activation_mse, **options))(s, t)
  np.testing.assert_allclose(value, expected(s, t, **options), rtol=1e-5)


@pytest.mark.parametrize(
  ("transfer", "count", "kept"),
  [
    ("top", 2, slice(3, None)),
    ("lowest", 2, slice(0, 2)),
    ("top_code", 3, slice(3, None)),
    # Of 5 classes, the one of index 99 - 97 in falling order, and all below it.
    ("lowest_code", 97, slice(0, 3)),
  ],
)
def test_a_part_of_the_classes_is_chosen_by_the_teachers_logits(transfer, count, kept):
  s, t = draw(3, 2, 2, 5), draw(3, 2, 2, 5, seed=1)
  rising = np.argsort(t.mean((1, 2)), axis=1)
  value = class_activation_mse(s, t, transfer=transfer, count=count)
  np.testing.assert_allclose(value, expected(s, t, rising[:, kept]), rtol=1e-5)


def test_equal_logits_take_the_first_class_and_the_code_then_compares_all():
  s, t = draw(2, 2, 2, 3), draw(2, 2, 2, 3, seed=1)
  t[0] = t[0, ..., :1]
  t[1, ..., 2] = 9.0
  np.testing.assert_allclose(
    class_activation_mse(s, t, transfer="top", count=1), expected(s, t, [[0], [2]]), rtol=1e-5
  )
  # Above the second largest logit are no class of the first example, and one of the other.
  code = class_activation_mse(s, t, transfer="top_code", count=2)
  np.testing.assert_allclose(code, expected(s, t), rtol=1e-5)


def test_the_scale_of_a_map_does_not_matter_if_it_is_normalised():
  s, t = draw(3, 4, 4, 5), draw(3, 4, 4, 5, seed=1)
  factors = 1 + np.abs(draw(3, 1, 1, 5, seed=2))
  value = class_activation_mse(s, t)
  np.testing.assert_allclose(class_activation_mse(factors * s, 1e8 * t), value, rtol=1e-5)
  assert class_activation_mse(2 * s, s) < 1e-12 < class_activation_mse(2 * s, s, normalize=False)


@pytest.mark.parametrize("scale", [1e8, 1e-18, 0.0])
def test_extreme_maps_have_finite_gradients_and_a_zero_map_none(scale):
  s, t = np.float32(scale) * draw(1, 4, 4, 3), draw(1, 4, 4, 3, seed=1)
  s[..., 0] = 0
  value, gradient = jit(jax.value_and_grad(class_activation_mse))(s, t)
  assert np.isfinite(value) and np.isfinite(gradient).all() and not gradient[..., 0].any()
  steep = jax.grad(functools.partial(class_activation_mse, steep_zeros=True))(s, t)
  assert np.isfinite(steep).all() and np.abs(steep[..., 0]).max() > 1e8


@pytest.mark.parametrize(
  "model",
  [
    CifarResNet(1, (4, 4, 6, 8), 5),
    # A convolution to the width of the classifier, and a normalisation of each token.
    pytest.param(MobileNetV2(1 / 8, (1, 1, 1, 1, 1, 1, 1), 8, 5), marks=pytest.mark.long),
    pytest.param(VisionTransformer(4, 8, 2, (1, 1, 1), 5), marks=pytest.mark.long),
  ],
  ids=lambda model: type(model).__name__,
)
def test_mean_over_positions_of_class_maps_is_the_logits_without_the_bias(model):
  images = draw(2, 16, 16, 3)
  variables = drawn(model, images)
  output = jit(functools.partial(infer, model))(variables, images)
  stage = [s for s in model.stages if output.features[s].ndim == 4][-1]

  def classify(features, from_stage="pooled"):
    return infer(model, variables, features, from_stage=from_stage).logits

  zeros = jnp.zeros((1, output.features["pooled"].shape[-1]))
  found = class_maps(classify, output.features[stage], stage, zeros).features["class_maps"]
  assert found.shape == (*output.features[stage].shape[:3], 5)
  wanted = output.logits - classify(zeros)
  np.testing.assert_allclose(found.mean((1, 2)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"transfer": "some"}, "unknown transfer 'some'"),
    ({"resolution": 0}, "resolution is 0: it must be an integer greater than 0"),
    (
      {"transfer": "top", "count": 9},
      "stage 'class_maps': count is 9: transfer 'top'",
    ),
  ],
)
def test_error_for_wrong_arguments_names_them(options, message):
  maps = Output(features={"class_maps": jnp.ones((2, 2, 2, 3))})
  with pytest.raises(ConfigError, match=message):
    class_attention(maps, maps, **options)
  with pytest.raises(ConfigError, match="differ in the number of classes"):
    class_activation_mse(jnp.ones((2, 2, 2, 3)), jnp.ones((2, 2, 2, 4)))
