"""The update of every method in compiled float32 agrees with the one in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.experiment import build
from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.train import TrainState, training_step
from jaxkd.types import Batch
from tests.methods.test_every_method import ON_TWO_STAGES, dataset, settings_with
from tests.numerics.behind_a_network import BATCH_SIZES, OPTIMISED, PLAIN, cast
from tests.tiny import TinyNet, create

SCALES = (1e-3, 1.0, 1e8)
# Methods that need the whole batch at once.
WHOLE = ("mlkd", "rkd", "sp", "born_again/generations=1/form='confidence'", "multi_exit")


def stages_of(variant, dtype):
  """Name -> scheme of the stages that a method trains beside the teacher and the student alone."""
  settings = settings_with(variant)
  settings.data.crop = 0
  settings.sync_batch_norm = True
  settings.compute_dtype = dtype
  found = build.phases(settings, dataset(), traced=False)
  return {s.name: s.scheme for s in found if s.name not in ("teacher", "alone")}


def drawn_batch(size, scale=1.0, duplicates=False):
  rng = np.random.default_rng(size)
  images = rng.normal(size=(size, 8, 8, 1)).astype("float32")
  if duplicates:
    images[-1] = images[size // 2] = images[0]
  return Batch(
    np.float32(scale) * images,
    rng.integers(0, 4, size).astype("int32"),
    np.ones(size, "float32"),
    np.arange(size, dtype="int32"),
    np.zeros(size, "int32"),
    views={"strong": np.float32(scale) * images[:, ::-1]},
  )


def start(scheme):
  """Variables of which no bias and no statistic is the 0 or 1 it is drawn as."""
  init = jax.jit(scheme.init, compiler_options=PLAIN)
  rng = np.random.default_rng(1)

  def moved(x):
    return x + np.abs(rng.normal(size=x.shape, scale=0.05)).astype(x.dtype)

  variables = jax.device_get(init(jax.random.key(0), drawn_batch(2)))
  return jax.tree.map(lambda x: moved(x) if x.dtype.kind == "f" else x, variables)


def make_update(scheme, options, *, devices=1, parts=1):
  """(variables, batch) -> (gradients by learner, loss), compiled."""
  optimizer = optax.sgd(1.0)
  step = training_step(
    scheme, optimizer, lambda keys, batch: batch, axis_name=AXIS_NAME, accumulate=parts
  )

  def run(variables, batch):
    learning = select(variables, scheme.learners)
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(0), key, variables, optimizer.init(learning))
    after, metrics = step(state, batch)
    moved = jax.tree.map(jnp.subtract, learning, select(after.participants, scheme.learners))
    return moved, metrics["loss"][0] / metrics["loss"][1]

  if devices > 1:
    mapped = jax.pmap(run, AXIS_NAME, in_axes=(None, 0), devices=jax.devices()[:devices])
  else:
    mapped = jax.vmap(run, in_axes=(None, 0), axis_name=AXIS_NAME)
  compiled = jax.jit(mapped, compiler_options=options)

  def update(variables, batch):
    shared = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    return jax.tree.map(lambda x: np.asarray(x[0], np.float64), compiled(variables, shared))

  return update


def disagreements(variant, size, *, scales=SCALES, devices=1, parts=1):
  """The differences between float32, in parts and on devices, and float64 with the whole batch.

  Batch statistics are those of a part: a learner that has some is compared with float64 in parts.
  """
  narrow = stages_of(variant, "float32")
  with jax.enable_x64(True):
    wide = stages_of(variant, "float64")
  wrong = []
  for name, scheme in narrow.items():
    variables = start(scheme)
    update = make_update(scheme, OPTIMISED, devices=devices, parts=parts)
    with jax.enable_x64(True):
      learners = {learner.partition("/")[0] for learner in scheme.learners}
      by_part = any("batch_stats" in variables[learner] for learner in learners)
      reference = make_update(wide[name], PLAIN, parts=parts if by_part else 1)
    for scale in scales:
      for duplicates in (False, True):
        batch = drawn_batch(size, scale, duplicates)
        gradients, loss = update(variables, batch)
        with jax.enable_x64(True):
          expected, true = reference(cast(variables, "float64"), cast(batch, "float64"))
        where = f"{variant}, {name}, B={size}, scale {scale:g}"
        if not abs(loss - true) <= 1e-4 * abs(true) + 1e-6:
          wrong.append(f"{where}: loss {loss:.6g}, in float64 {true:.6g}")
        for learner, tree in expected.items():
          pairs = zip(jax.tree.leaves(gradients[learner]), jax.tree.leaves(tree), strict=True)
          sizes = [(np.abs(a - b).max(), np.abs(b).max()) for a, b in pairs]
          off, largest = (max((size[i] for size in sizes), default=0.0) for i in (0, 1))
          if not off <= 1e-3 * largest + 1e-5:
            wrong.append(f"{where}: gradient of {learner} off by {off:.3g}, largest {largest:.3g}")
  return wrong


@pytest.fixture(autouse=True)
def networks_of_any_type(monkeypatch):
  monkeypatch.setattr(models, "create", create)


OFTEN = ("kd", "rkd")


@pytest.mark.long
@pytest.mark.parametrize("variant", OFTEN)
def test_the_update_agrees_with_float64(variant):
  assert not disagreements(variant, 5)


@pytest.mark.numerics
@pytest.mark.parametrize("variant", ON_TWO_STAGES)
def test_the_update_agrees_with_float64_at_every_batch_size(variant):
  # The sizes at which the compiler vectorises otherwise; RKD, where it matters most, at all.
  sizes = BATCH_SIZES if variant == "rkd" else (1, 2, 3, 4, 7, 8, 16, 17)
  assert not [words for size in sizes for words in disagreements(variant, size)]


@pytest.mark.numerics
@pytest.mark.parametrize("variant", ON_TWO_STAGES)
def test_the_mapped_update_agrees_with_float64(variant):
  assert not disagreements(variant, 6, devices=2)


@functools.cache
def _without_statistics(name, *, num_classes, axis_name, dtype):
  network = create(name, num_classes=num_classes, axis_name=axis_name, dtype=dtype)
  return network.clone(norm=False) if isinstance(network, TinyNet) else network


@pytest.mark.numerics
@pytest.mark.parametrize("variant", ON_TWO_STAGES)
def test_the_update_in_parts_agrees_with_float64_or_is_refused(variant, monkeypatch):
  monkeypatch.setattr(models, "create", _without_statistics)
  if variant in WHOLE:
    with pytest.raises(ConfigError, match="accumulate=2: expected 1"):
      disagreements(variant, 6, parts=2)
  else:
    assert not disagreements(variant, 6, scales=(1.0,), parts=2)
