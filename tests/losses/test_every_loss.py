"""Properties of every loss: transforms, precision, teacher without gradient, documentation."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxkd import losses
from jaxkd.types import Output, Terms
from tests import rows
from tests.losses.subjects import SUBJECTS, B, Subject

# Each program runs a few times only, so compile time dominates.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def marked(name: str, *values: object, long: bool = False) -> object:
  """Make a parameter set of a row of SUBJECTS."""
  marks = [pytest.mark.long] if long or SUBJECTS[name].long else []
  return pytest.param(*values, marks=marks, id="-".join([name, *map(str, values[1:])]))


each_loss = pytest.mark.parametrize("subject", [marked(name, SUBJECTS[name]) for name in SUBJECTS])
# For tests that compile a program of their own: with a file in tests/rows, and forms of a loss for
# tokens and with other options, among the long ones.
OF_FILES = rows.merged("SUBJECTS")
FORMS = ("_tokens", "_paper", "_gaussian", "_maps", "_mse", "_weighted")
each_costly = pytest.mark.parametrize(
  "subject",
  [
    marked(name, row, long=name in OF_FILES or name.endswith(FORMS))
    for name, row in SUBJECTS.items()
  ],
)


def draw(subject: Subject, dtype="float32", seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=shape), dtype) for shape in (subject.student, subject.teacher)
  )


@functools.cache
def compiled(loss: Callable):
  """Value and both gradients, compiled once for all tests of a loss."""
  return jit(jax.value_and_grad(loss, argnums=(0, 1)))


def assert_close(actual, desired):
  chex.assert_trees_all_close(actual, desired, rtol=1e-5, atol=1e-7)


@each_costly
def test_jit_vmap_and_checkpoint_agree_with_eager(subject):
  s, t = draw(subject)
  value, (gradient, _) = compiled(subject.loss)(s, t)
  assert_close(subject.loss(s, t), value)

  # All transforms in one program, to compile once.
  transformed = jit(jax.vmap(jax.value_and_grad(jax.checkpoint(subject.loss))))
  assert_close(transformed(s[None], t[None]), (value[None], gradient[None]))


# pmap is implemented by shard_map: two losses suffice to test shard_map, one of which compares
# samples of several devices.
ON_DEVICES = [
  *((subject, "pmap") for subject in SUBJECTS),
  *((name, "shard_map") for name in ("knowledge_distillation", "relational")),
]


@pytest.mark.parametrize(
  ("subject", "transform"),
  [
    # The mean over devices of a mean over examples needs no program of its own.
    marked(name, SUBJECTS[name], how, long=name in OF_FILES and SUBJECTS[name].mapped is None)
    for name, how in ON_DEVICES
  ],
)
def test_mean_over_devices_equals_the_whole_batch(subject, transform):
  s, t = draw(subject)

  def shard(s, t):
    value, gradient = jax.value_and_grad(subject.mapped or subject.loss)(s, t)
    return jax.lax.pmean(value, "batch"), gradient / 8

  if transform == "pmap":
    mapped = jax.pmap(shard, "batch", out_axes=(None, 0), devices=jax.devices()[:8])
    value, gradient = mapped(*(x.reshape(8, 1, *x.shape[1:]) for x in (s, t)))
  else:
    mesh = jax.make_mesh((8,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:8])
    specs = {"in_specs": P("batch"), "out_specs": (P(), P("batch"))}
    value, gradient = jit(jax.shard_map(shard, mesh=mesh, check_vma=False, **specs))(s, t)
  expected, (expected_gradient, _) = compiled(subject.loss)(s, t)
  assert_close((value, gradient.reshape(s.shape)), (expected, expected_gradient))


@each_costly
def test_gradient_equals_finite_differences(subject):
  with jax.enable_x64(True):
    s, t = draw(subject, "float64")
    direction, _ = draw(subject, "float64", seed=1)

    @jit
    def slopes(s, t):
      moved = jnp.stack([s + 1e-5 * direction, s - 1e-5 * direction])
      up, down = jax.vmap(lambda s: subject.loss(s, t))(moved)
      return jnp.vdot(jax.grad(subject.loss)(s, t), direction), (up - down) / 2e-5

    exact, finite = slopes(s, t)
    np.testing.assert_allclose(exact, finite, rtol=1e-7)
    assert abs(finite) > 1e-6


@each_loss
def test_teacher_gets_no_gradient(subject):
  s, t = draw(subject)
  _, (_, gradient) = compiled(subject.loss)(s, t)
  np.testing.assert_array_equal(gradient, np.zeros(t.shape))


@each_costly
def test_bfloat16_is_computed_in_float32(subject):
  s, t = draw(subject, "bfloat16")
  value, (gradient, _) = compiled(subject.loss)(s, t)
  widened = (np.asarray(x).astype("float32") for x in (s, t))
  exact, (exact_gradient, _) = compiled(subject.loss)(*widened)
  assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(value, exact, rtol=1e-6)
  gradient = np.asarray(gradient).astype("float32")
  np.testing.assert_allclose(gradient, exact_gradient, rtol=0.02, atol=1e-5)


@each_loss
def test_float64_and_float32_inputs_keep_their_dtype(subject):
  with jax.enable_x64(True):
    for dtype in ("float64", "float32"):
      s, t = draw(subject, dtype)
      value, gradient = jax.eval_shape(jax.value_and_grad(subject.loss), s, t)
      assert value.dtype == gradient.dtype == jnp.dtype(dtype)
      assert value.shape == ()


@each_loss
def test_order_of_the_examples_does_not_matter(subject):
  s, t = map(np.asarray, draw(subject))
  (value, _), (turned, _) = compiled(subject.loss)(s, t), compiled(subject.loss)(s[::-1], t[::-1])
  np.testing.assert_allclose(turned, value, rtol=1e-5, atol=1e-8)


def distort(x, kind):
  """Return a degenerate version of the array, made with numpy to avoid compilation."""
  x = x.copy()
  if kind == "zero":
    x[:] = 0
  elif kind == "one example zero":
    x[0] = 0
  elif kind == "one channel zero":
    x[..., 0] = 0
  elif kind == "constant":
    x[:] = x[:1, ..., :1].copy()
  elif kind == "duplicates":
    x[:] = x[:1].copy()
  return x


KINDS = ["as drawn", "zero", "one example zero", "one channel zero", "constant", "duplicates"]


@each_loss
@given(
  seed=st.integers(0, 2**31),
  scale=st.sampled_from([1e-4, 1e-2, 1.0, 1e2, 1e4]),
  # One example in bfloat16 would be one more program to compile.
  sizes=st.sampled_from([(1, "float32"), (B, "float32"), (B, "bfloat16")]),
  kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
)
def test_random_inputs_give_finite_nonnegative_values(subject, seed, scale, sizes, kinds):
  batch, dtype = sizes
  s, t = (
    distort((scale * np.asarray(x)[:batch]).astype(dtype), kind)
    for x, kind in zip(draw(subject, "float32", seed), kinds, strict=True)
  )
  value, (gradient, teacher_gradient) = compiled(subject.loss)(s, t)
  chex.assert_tree_all_finite((value, gradient))
  # Differences of means, such as an MMD, may round to just below 0.
  largest = max(float(np.abs(x).max()) for x in (s, t))
  assert value >= -1e-6 - subject.rounding * largest
  assert not np.any(np.asarray(teacher_gradient))


@each_loss
def test_constant_inputs_give_finite_values_and_gradients(subject):
  for fill in (0.0, 1e4, -1e4):
    s, t = (np.full(shape, fill, "float32") for shape in (subject.student, subject.teacher))
    chex.assert_tree_all_finite(compiled(subject.loss)(s, t))


def test_losses_need_only_the_fields_they_use():
  z, x = jnp.ones((2, 3)), jnp.ones((2, 2, 2, 3))
  bare, full = Output(features={"stage3": x}), Output(logits=z, features={"stage3": x, "other": z})
  assert losses.simkd(bare, full).total == 0.0
  assert losses.knowledge_distillation(Output(logits=z), full).total == 0.0


def test_losses_return_their_value_in_the_right_term():
  s, t = Output(jnp.eye(2), {"x": jnp.ones((2, 2, 2, 1))}), Output(-jnp.eye(2), {})
  t = Output(t.logits, {"x": jnp.arange(8.0).reshape(2, 2, 2, 1)})
  assert losses.knowledge_distillation(s, t).logit > 0
  assert losses.knowledge_distillation(s, t).feature == 0
  for loss in (losses.fitnets, losses.simkd, losses.attention_transfer):
    terms = loss(s, t, stages=["x"])
    assert isinstance(terms, Terms) and terms.feature > 0 and terms.logit == 0


@pytest.mark.parametrize("name", losses.__all__)
def test_public_docstring_has_args_returns_and_source(name):
  function = getattr(losses, name)
  text = inspect.getdoc(function)
  for section in ("Args:", "Returns:", "Source:"):
    assert section in text, f"{name} has no {section}"
  for parameter in inspect.signature(function).parameters:
    assert f"\n  {parameter}:" in text, f"{name} does not document {parameter}"


def test_package_docstring_lists_every_public_name():
  public = {name for name in vars(losses) if inspect.isfunction(getattr(losses, name))}
  assert public == set(losses.__all__)
  for name in losses.__all__:
    assert f"`{name}`" in losses.__doc__


def test_losses_import_only_jax_and_numpy():
  code = (
    "import sys, jax; before = set(sys.modules); import jaxkd.losses;"
    "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
  )
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  loaded = set(out.stdout.split())
  foreign = {name for name in loaded if name not in sys.stdlib_module_names}
  assert foreign <= {"jaxkd", "jax", "numpy"}
