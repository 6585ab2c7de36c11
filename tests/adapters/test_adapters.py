"""Regressor and Projector: shapes, statistics, precision, and refused shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import Projector, Regressor, projector_for, regressor_for
from jaxkd.adapters.projector import LAYOUTS
from jaxkd.errors import ConfigError
from jaxkd.losses import fitnets, simkd
from jaxkd.types import Output
from tests.models.drawn import drawn

# Everything here runs once or a few times: the compiler's time is what counts.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, shape):
  """Output and parameter shapes, without computing anything."""
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  out, variables = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, train=False), x
  )
  return out.shape, jax.tree.map(lambda leaf: leaf.shape, variables)


@pytest.mark.parametrize(
  ("student", "teacher", "kernel", "size"),
  [
    ((8, 8), (4, 4), (3, 3), (4, 4)),  # twice
    ((8, 7), (4, 4), (3, 3), (4, 4)),  # twice in rows, columns rounded up as the stride does
    ((4, 6), (8, 12), (4, 4), (8, 12)),  # half
    ((4, 4), (4, 4), (1, 1), (4, 4)),  # equal
    ((5, 7), (3, 4), (3, 4), (3, 4)),  # larger
    ((8, 8), (4, 6), (5, 3), (4, 6)),  # twice in rows alone
    ((3, 3), (5, 5), (3, 3), (3, 3)),  # smaller: the loss pools the teacher
    ((4, 4), (8, 6), (3, 3), (4, 4)),  # half in rows alone
  ],
)
def test_regressor_handles_every_relation_of_sizes(student, teacher, kernel, size):
  s, t = (2, *student, 3), (2, *teacher, 5)
  out, variables = shapes(regressor_for(s, t, stage="stage2"), s)
  assert out == (2, *size, 5)
  assert variables["params"]["conv"] == {"kernel": (*kernel, 3, 5), "bias": (5,)}
  assert variables["params"]["bn"] == {"scale": (5,), "bias": (5,)}
  regressed, target = (Output(features={"x": jnp.ones(shape)}) for shape in (out, t))
  assert fitnets(regressed, target, stages=["x"]).feature == 0


def test_regressor_of_pooled_features_is_a_dense_layer():
  out, variables = shapes(regressor_for((2, 3), (2, 7), stage="pooled"), (2, 3))
  assert out == (2, 7) and variables["params"]["conv"]["kernel"] == (3, 7)


def test_regressor_without_its_parts_is_one_linear_map():
  module = Regressor((2, 2), 5, batch_norm=False, use_bias=False, activation=False)
  _, variables = shapes(module, (2, 2, 2, 3))
  assert variables == {"params": {"conv": {"kernel": (1, 1, 3, 5)}}}
  x, kernel = jnp.arange(24.0).reshape(2, 2, 2, 3) - 12, jnp.arange(15.0).reshape(1, 1, 3, 5)
  out = module.apply({"params": {"conv": {"kernel": kernel}}}, x, train=True)
  np.testing.assert_allclose(out, np.asarray(x) @ np.asarray(kernel[0, 0]), rtol=1e-5)
  assert (out < 0).any()


@pytest.mark.parametrize(
  ("student", "teacher"),
  [((2, 3), (2, 4, 4, 5)), ((2, 4, 4, 5), (2, 3)), ((2, 8, 2, 3), (2, 4, 4, 5))],
)
def test_error_names_stage_and_shapes_without_a_regressor(student, teacher):
  with pytest.raises(ConfigError) as error:
    regressor_for(student, teacher, stage="stage2")
  for part in ("stage 'stage2'", str(student), str(teacher)):
    assert part in str(error.value)


def test_regressor_refuses_features_of_another_rank():
  with pytest.raises(ConfigError, match=r"cannot take features \(2, 3\)"):
    shapes(Regressor((4, 4), 5), (2, 3))
  with pytest.raises(ConfigError, match=r"no convolution brings \(2, 8, 2, 3\)"):
    shapes(Regressor((4, 4), 5), (2, 8, 2, 3))


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_projector_narrows_by_its_reduction(reduction):
  s, t = (2, 4, 4, 3), (2, 4, 4, 16)
  module = projector_for(s, t, stage="stage3", reduction=reduction)
  out, variables = shapes(module, s)
  width = 16 // reduction
  params = variables["params"]
  assert out == t
  assert [params[f"conv{i}"] for i in (1, 2, 3)] == [
    {"kernel": (1, 1, 3, width)},
    {"kernel": (3, 3, width, width)},
    {"kernel": (1, 1, width, 16)},
  ]


def test_projector_of_the_paper_has_the_published_number_of_weights():
  counts = {}
  for reduction in (2, 4, 8):
    _, variables = shapes(Projector((8, 8), 256, reduction), (1, 8, 8, 256))
    leaves = jax.tree.leaves(variables["params"], is_leaf=lambda x: isinstance(x, tuple))
    counts[reduction] = sum(int(np.prod(shape)) for shape in leaves)
  assert counts == {2: 214016, 4: 70400, 8: 26240}


@pytest.mark.parametrize(
  ("layout", "reduction", "kernels"),
  [
    ("1x1", 2, [(1, 1, 3, 16)]),
    ("1x1", 3, [(1, 1, 3, 16)]),  # no middle that would have to be a third
    ("1x1-1x1", 2, [(1, 1, 3, 8), (1, 1, 8, 16)]),
    ("1x1-3x3-1x1", 4, [(1, 1, 3, 4), (3, 3, 4, 4), (1, 1, 4, 16)]),
    ("1x1-dw3x3-1x1", 4, [(1, 1, 3, 4), (3, 3, 1, 4), (1, 1, 4, 16)]),
  ],
)
def test_projector_layouts_name_their_convolutions_in_order(layout, reduction, kernels):
  s, t = (2, 4, 4, 3), (2, 4, 4, 16)
  module = projector_for(s, t, stage="stage3", reduction=reduction, layout=layout)
  out, variables = shapes(module, s)
  params = variables["params"]
  assert out == t
  assert set(params) == {f"{kind}{i + 1}" for kind in ("conv", "bn") for i in range(len(kernels))}
  for i, kernel in enumerate(kernels, start=1):
    assert params[f"conv{i}"] == {"kernel": kernel}
    assert params[f"bn{i}"] == {"scale": kernel[-1:], "bias": kernel[-1:]}


@pytest.mark.parametrize("reduction", [1, 4])
def test_projector_layouts_have_the_documented_number_of_weights(reduction):
  c_s, c_t, w = 6, 16, 16 // reduction
  documented = {
    "1x1": c_s * c_t + 2 * c_t,
    "1x1-1x1": c_s * w + w * c_t + 2 * (w + c_t),
    "1x1-3x3-1x1": c_s * w + 9 * w**2 + w * c_t + 2 * (2 * w + c_t),
    "1x1-dw3x3-1x1": c_s * w + 9 * w + w * c_t + 2 * (2 * w + c_t),
  }
  assert set(documented) == set(LAYOUTS)
  for layout, count in documented.items():
    _, variables = shapes(Projector((4, 4), c_t, reduction, layout=layout), (1, 4, 4, c_s))
    leaves = jax.tree.leaves(variables["params"], is_leaf=lambda x: isinstance(x, tuple))
    assert sum(int(np.prod(shape)) for shape in leaves) == count


def test_a_depthwise_projector_filters_each_channel_separately():
  module = Projector((3, 3), 4, 1, layout="1x1-dw3x3-1x1")
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 3, 3, 4)), jnp.float32)
  variables = drawn(module, x, train=False)
  identity = {"kernel": jnp.eye(4)[None, None]}
  variables["params"].update(conv1=identity, conv3=identity)
  variables["params"]["conv2"] = {"kernel": jnp.ones((3, 3, 1, 4))}
  for i in (1, 2, 3):
    variables["params"][f"bn{i}"] = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    variables["batch_stats"][f"bn{i}"] = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
  out = jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
  # Ones over a 3x3 window: at the centre the sum over the image, channel by channel.
  np.testing.assert_allclose(out[0, 1, 1], x[0].sum((0, 1)), rtol=1e-4)


@pytest.mark.parametrize(
  ("student", "teacher", "size"),
  [((8, 8), (4, 4), (4, 4)), ((8, 6), (4, 2), (4, 2)), ((3, 3), (6, 6), (3, 3))],
)
def test_projector_pools_a_larger_student_and_the_loss_a_larger_teacher(student, teacher, size):
  s, t = (1, *student, 3), (1, *teacher, 4)
  out, _ = shapes(projector_for(s, t, stage="stage3"), s)
  assert out == (1, *size, 4)
  projected, target = (Output(features={"stage3": jnp.ones(shape)}) for shape in (out, t))
  assert simkd(projected, target).feature == 0


@pytest.mark.parametrize(
  ("student", "teacher", "reduction"),
  [((2, 3), (2, 4, 4, 8), 2), ((2, 4, 4, 3), (2, 4, 4, 9), 2), ((2, 4, 4, 3), (2, 4, 4, 8), 0)],
)
def test_error_names_stage_and_shapes_without_a_projector(student, teacher, reduction):
  with pytest.raises(ConfigError) as error:
    projector_for(student, teacher, stage="stage3", reduction=reduction)
  for part in ("stage 'stage3'", str(student), str(teacher)):
    assert part in str(error.value)


@pytest.mark.parametrize("student", [(2, 3), (2, 4, 5, 3)], ids=["vector", "map"])
@pytest.mark.parametrize(
  ("layout", "kernels"),
  [
    ("1x1", [(3, 16)]),
    ("1x1-1x1", [(3, 8), (8, 16)]),
    ("1x1-3x3-1x1", [(3, 8), (8, 8), (8, 16)]),
    ("1x1-dw3x3-1x1", [(3, 8), (8, 8), (8, 16)]),
  ],
)
def test_projector_to_a_vector_is_dense(layout, kernels, student):
  module = projector_for(student, (2, 16), stage="pooled", layout=layout)
  out, variables = shapes(module, student)
  assert out == (2, 16)
  assert [variables["params"][f"conv{i}"] for i in range(1, len(kernels) + 1)] == [
    {"kernel": kernel} for kernel in kernels
  ]
  with pytest.raises(ConfigError, match=r"Projector: features \(2, 3, 3\) .* or \(B, C\)"):
    shapes(module, (2, 3, 3))


def test_projector_to_a_vector_takes_the_mean_of_a_map_over_the_image():
  module = Projector(None, 4, layout="1x1")
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 3)), jnp.float32)
  variables = drawn(module, x, train=False)
  of_map, of_mean = jit(lambda v, x: [module.apply(v, y, False) for y in (x, x.mean((1, 2)))])(
    variables, x
  )
  np.testing.assert_allclose(of_map, of_mean, rtol=1e-5, atol=1e-6)
  assert (of_map > 0).any()


@pytest.mark.parametrize("size", [(2, 2), None], ids=["map", "vector"])
def test_projector_without_activation_lacks_the_last_relu_alone(size):
  plain = Projector(size, 4, layout="1x1-1x1")
  signed = plain.clone(activation=False)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)), jnp.float32)
  variables = drawn(plain, x, train=False)
  a, b = jit(lambda v, x: [module.apply(v, x, False) for module in (plain, signed)])(variables, x)
  np.testing.assert_allclose(a, np.maximum(b, 0), rtol=1e-5, atol=1e-6)
  assert (b < 0).any()


def test_a_vector_for_a_teachers_map_is_refused():
  with pytest.raises(ConfigError, match=r"stage 'stage3'.*a vector \(B, C\) cannot become a map"):
    projector_for((2, 3), (2, 4, 4, 8), stage="stage3")


def test_projector_refuses_pooled_features_and_uneven_reductions():
  with pytest.raises(ConfigError, match=r"features \(2, 3\) are not \(B, H, W, C\)(?! or)"):
    shapes(Projector((4, 4), 8), (2, 3))
  with pytest.raises(ConfigError, match="reduction is 3: it must divide the teacher's 8 channels"):
    shapes(Projector((4, 4), 8, 3), (2, 4, 4, 3))
  with pytest.raises(ConfigError, match=r"unknown projector layout '3x3': .*known: 1x1, 1x1-1x1, "):
    projector_for((2, 4, 4, 3), (2, 4, 4, 8), stage="stage3", layout="3x3")


@pytest.mark.parametrize(
  "module", [Regressor((2, 2), 4), Projector((2, 2), 4)], ids=["regressor", "projector"]
)
def test_statistics_change_in_training_and_are_used_in_evaluation(module):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.float32)
  variables = jit(lambda: module.init(jax.random.key(0), x, train=False))()

  @jit
  def train(variables):
    return module.apply(variables, x, train=True, mutable=["batch_stats"])

  @jit
  def evaluate(variables):
    return module.apply(variables, x, train=False)

  trained, moved = train(variables)
  before, after = evaluate(variables), evaluate(variables | moved)
  assert np.abs(before - after).max() > 1e-3
  # Momentum 0.9: each step covers a tenth of the way to the batch's statistics.
  for _ in range(150):
    _, moved = train(variables | moved)
  np.testing.assert_allclose(evaluate(variables | moved), trained, atol=1e-4)


@pytest.mark.parametrize(
  ("kind", "axis_name"), [(Regressor, None), (Regressor, "batch"), (Projector, "batch")]
)
def test_only_with_an_axis_name_statistics_are_shared_over_devices(kind, axis_name):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.float32)
  whole, shared = kind((2, 2), 4), kind((2, 2), 4, axis_name=axis_name)
  variables = jit(lambda: whole.init(jax.random.key(0), x, train=False))()

  def apply(module):
    return lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

  split = jax.pmap(apply(shared), axis_name="batch")(x.reshape(8, 1, 2, 2, 3))
  same = np.allclose(split.reshape(8, 2, 2, 4), jit(apply(whole))(x), rtol=1e-4, atol=1e-5)
  assert same == (axis_name is not None)


@pytest.mark.parametrize("kind", [Regressor, Projector])
def test_bfloat16_computes_in_bfloat16_with_float32_parameters(kind):
  module = kind((2, 2), 4, dtype=jnp.bfloat16)
  x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
  out, variables = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, train=False), x
  )
  assert out.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
