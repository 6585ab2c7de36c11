"""Paraphraser and translator: widths, statistics, precision, and refused shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import FactorDecoder, FactorEncoder, paraphraser_for, translator_for
from jaxkd.errors import ConfigError
from jaxkd.losses import factor_transfer
from jaxkd.types import Output

# Everything here runs once or a few times: the compiler's time is what counts.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, shape):
  """Output and parameter shapes, without computing anything."""
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  out, variables = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, train=False), x
  )
  return out.shape, jax.tree.map(lambda leaf: leaf.shape, variables)


def widths(variables):
  return [variables["params"][f"conv{i}"]["kernel"] for i in (1, 2, 3)]


@pytest.mark.parametrize(("rate", "factor"), [(0.5, 4), (0.75, 6), (0.35, 2), (2.0, 16)])
def test_paraphraser_maps_to_the_factor_and_decoder_back(rate, factor):
  encoder, decoder = paraphraser_for((2, 4, 3, 8), stage="stage3", rate=rate)
  out, variables = shapes(encoder, (2, 4, 3, 8))
  assert out == (2, 4, 3, factor) and list(variables) == ["params"]
  assert widths(variables) == [(3, 3, 8, 8), (3, 3, 8, factor), (3, 3, factor, factor)]
  assert variables["params"]["conv2"]["bias"] == (factor,)
  restored, variables = shapes(decoder, out)
  assert restored == (2, 4, 3, 8)
  assert widths(variables) == [(3, 3, factor, factor), (3, 3, factor, 8), (3, 3, 8, 8)]


@pytest.mark.parametrize("student_size", [(4, 4), (8, 8), (2, 2)])
def test_translator_gives_what_the_loss_compares_with_the_paraphrasers_factor(student_size):
  s, t = (2, *student_size, 3), (2, 4, 4, 8)
  translator = translator_for(s, t, stage="stage3", rate=0.75)
  translated, variables = shapes(translator, s)
  assert translated == (2, *student_size, 6)
  assert widths(variables) == [(3, 3, 3, 3), (3, 3, 3, 6), (3, 3, 6, 6)]
  encoder, _ = paraphraser_for(t, stage="stage3", rate=0.75)
  factor, _ = shapes(encoder, t)
  pair = (Output(features={"stage3": jnp.ones(shape)}) for shape in (translated, factor))
  assert factor_transfer(*pair).feature == 0


@functools.partial(jit, static_argnums=0)
def initialized_and_applied(module, x):
  variables = module.init(jax.random.key(0), x, train=False)
  return variables["params"], module.apply(variables, x, train=True)


def convolve(x, kernel):
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


X = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")


def test_factors_are_leaky_convolutions_of_three_by_three():
  params, out = initialized_and_applied(FactorEncoder(2, negative_slope=0.3), X)

  @jit
  def by_hand(x):
    for i in (1, 2, 3):
      x = convolve(x, params[f"conv{i}"]["kernel"])
      x = jnp.where(x > 0, x, 0.3 * x)
    return x

  np.testing.assert_allclose(out, by_hand(X), rtol=1e-4, atol=1e-5)


def test_decoder_is_a_stack_of_transposed_convolutions_with_turned_kernels():
  params, out = initialized_and_applied(FactorDecoder(3), X)

  @jit
  def by_hand(x):
    for i in (1, 2, 3):
      turned = params[f"conv{i}"]["kernel"][::-1, ::-1].swapaxes(2, 3)
      # A transposed convolution is the gradient of a convolution by its input.
      (x,) = jax.vjp(lambda y, turned=turned: convolve(y, turned), x)[1](x)
      x = jnp.where(x > 0, x, 0.1 * x)
    return x

  np.testing.assert_allclose(out, by_hand(X), rtol=1e-4, atol=1e-5)


def test_statistics_change_in_training_and_are_used_in_evaluation():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.float32)
  module = translator_for((8, 2, 2, 3), (8, 2, 2, 4), stage="stage3", batch_norm=True)
  variables = jit(lambda: module.init(jax.random.key(0), x, train=False))()
  assert list(variables["batch_stats"]) == ["bn1", "bn2", "bn3"]

  @jit
  def train(variables):
    return module.apply(variables, x, train=True, mutable=["batch_stats"])

  @jit
  def evaluate(variables):
    return module.apply(variables, x, train=False)

  before = evaluate(variables)
  trained, moved = train(variables)
  assert np.abs(before - evaluate(variables | moved)).max() > 1e-3
  # Momentum 0.9: each step covers a tenth of the way to the batch's statistics.
  for _ in range(150):
    _, moved = train(variables | moved)
  np.testing.assert_allclose(evaluate(variables | moved), trained, atol=1e-4)


def test_an_axis_name_makes_statistics_those_of_all_devices():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.float32)
  whole = FactorEncoder(4, batch_norm=True)
  variables = jit(lambda: whole.init(jax.random.key(0), x, train=False))()

  def apply(module):
    return lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

  shared = apply(FactorEncoder(4, batch_norm=True, axis_name="batch"))
  split = jit(jax.vmap(shared, axis_name="batch"))(x.reshape(8, 1, 2, 2, 3))
  np.testing.assert_allclose(split.reshape(8, 2, 2, 4), jit(apply(whole))(x), rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  encoder, decoder = paraphraser_for((2, 4, 4, 3), stage="stage3", dtype=jnp.bfloat16)
  for module in (encoder, decoder):
    out, variables = jax.eval_shape(
      lambda module=module: module.init_with_output(
        jax.random.key(0), jnp.ones((2, 4, 4, 3)), train=False
      )
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("student", "teacher", "rate"),
  [((2, 3), (2, 4, 4, 8), 0.5), ((2, 4, 4, 3), (2, 8), 0.5), ((2, 4, 4, 3), (2, 4, 4, 8), 0.1)],
)
def test_error_names_stage_and_shapes_without_a_translator(student, teacher, rate):
  with pytest.raises(ConfigError) as error:
    translator_for(student, teacher, stage="stage3", rate=rate)
  for part in ("stage 'stage3'", str(student), str(teacher)):
    assert part in str(error.value)


@pytest.mark.parametrize(("shape", "rate"), [((2, 8), 0.5), ((2, 4, 4, 8), float("nan"))])
def test_error_names_stage_and_shape_without_a_paraphraser(shape, rate):
  with pytest.raises(ConfigError) as error:
    paraphraser_for(shape, stage="stage3", rate=rate)
  assert "stage 'stage3'" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize("kind", [FactorEncoder, FactorDecoder])
def test_pooled_features_are_refused(kind):
  with pytest.raises(ConfigError, match=rf"{kind.__name__}: features \(2, 3\)"):
    shapes(kind(4), (2, 3))
