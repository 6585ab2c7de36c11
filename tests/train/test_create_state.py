"""A phase's first state under JAX's transformations: shapes for a restore cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.methods import Distillation, per_example
from jaxkd.train import create_state
from tests.tiny import TinyNet, batch

OPTIMIZER = optax.sgd(0.1, momentum=0.9)
KEY = jax.random.key(3)


def supervised():
  return methods.supervised(TinyNet())


def offline():
  kd = Distillation("kd", per_example(losses.knowledge_distillation), 1.0)
  return methods.offline(TinyNet(), {"teacher": TinyNet(width=6)}, [kd])


def teacher():
  return TinyNet(width=6).init(jax.random.key(9), batch().inputs)


@pytest.fixture(scope="module")
def drawn():
  return create_state(supervised(), OPTIMIZER, KEY, batch(), average=True)


def draw(key):
  return create_state(supervised(), OPTIMIZER, key, batch(), average=True)


def shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize(
  "shaped",
  [
    lambda: jax.eval_shape(draw, KEY),
    lambda: jax.eval_shape(lambda: draw(jax.random.key(3))),
    lambda: jax.eval_shape(jax.jit(draw), KEY),
    lambda: jax.jit(draw).lower(KEY).out_info,
    lambda: jax.eval_shape(jax.checkpoint(draw), KEY),
  ],
  ids=["of-a-key", "of-nothing", "of-jit", "lowered", "of-checkpoint"],
)
def test_shapes_are_found_without_computing(drawn, shaped):
  assert shapes(shaped()) == shapes(drawn)


def assert_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


@pytest.mark.parametrize(
  "transformed",
  [
    lambda: jax.jit(draw)(KEY),
    lambda: jax.jit(lambda: draw(jax.random.key(3)))(),
    lambda: jax.tree.map(lambda x: x[0], jax.lax.map(draw, KEY[None])),
    lambda: jax.tree.map(lambda x: x[0], jax.vmap(draw)(KEY[None])),
    lambda: jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(draw))(KEY[None])),
    lambda: jax.lax.cond(jnp.bool_(True), draw, draw, KEY),
  ],
  ids=["jit", "jit-of-nothing", "map", "vmap", "jit-of-vmap", "cond"],
)
def test_transformations_draw_the_same_state(drawn, transformed):
  assert_close(transformed(), drawn)


def test_a_batch_and_given_variables_may_be_traced():
  def start(key, data, variables):
    return create_state(offline(), OPTIMIZER, key, data, given={"teacher": variables})

  plain = start(KEY, batch(), teacher())
  assert shapes(jax.eval_shape(start, KEY, batch(), teacher())) == shapes(plain)
  assert_close(jax.jit(start)(KEY, batch(), teacher()), plain)


def test_each_device_draws_the_same_state(drawn):
  devices = jax.local_devices()[:2]
  twice = jax.pmap(draw, devices=devices)(jnp.stack([KEY, KEY]))
  for place in (0, 1):
    assert_close(jax.tree.map(lambda x, place=place: x[place], twice), drawn)


def test_outside_a_trace_it_is_compiled_without_optimisation(monkeypatch):
  """Compiling without optimisation takes a seventh of the time."""
  asked, jit = [], jax.jit

  def seen(function, **options):
    compiled = jit(function, **options)

    def call(*arguments):
      asked.append(options.get("compiler_options"))
      return compiled(*arguments)

    call.eval_shape = compiled.eval_shape
    return call

  monkeypatch.setattr(jax, "jit", seen)
  draw(KEY)
  assert asked == [{"xla_backend_optimization_level": 0}]
