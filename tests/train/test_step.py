"""The training step: equal results on any number of devices; frozen variables do not change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, methods
from jaxkd.data import normalize, pad_crop
from jaxkd.methods import Distillation, per_example
from jaxkd.runtime import mapping
from jaxkd.train import create_state, training_step
from jaxkd.types import Aux, Batch, Context, Output, Scheme, Terms
from tests.tiny import TinyNet, batch, frozen_participants


def as_it_is(keys, batch):
  return batch


def cropped(keys, batch):
  return Batch(pad_crop(keys, batch.inputs, padding=1), batch.labels, batch.weights, batch.indices)


@functools.cache
def run_steps(
  scheme, device_count, *, steps=5, accumulate=1, prepare=as_it_is, decay=None, frozen=()
):
  """Return the state after a few steps over the same global batches; cached for all tests."""
  optimizer = optax.sgd(0.1, momentum=0.9)
  state = create_state(
    scheme,
    optimizer,
    jax.random.key(0),
    batch(),
    untrained=frozen_participants(scheme),
    average=decay is not None,
  )
  chosen = jax.local_devices()[:device_count]
  step = mapping.map_training_step(
    training_step(
      scheme,
      optimizer,
      prepare,
      axis_name=mapping.AXIS_NAME,
      accumulate=accumulate,
      average_decay=decay,
    ),
    chosen,
    frozen=frozen,
  )
  state, metrics = mapping.replicate(state, chosen), None
  for number in range(steps):
    data = jax.tree.map(np.asarray, batch(16, seed=number))
    state, metrics = step(state, mapping.shard(data, chosen))
  return state, jax.device_get(metrics)


# With augmentation and averages, which each device computes for itself.
AUGMENTED = {"prepare": cropped, "decay": 0.9}


@functools.cache
def distilling(axis_name=mapping.AXIS_NAME, norm=True):
  at = per_example(losses.attention_transfer, stages=("stage1", "stage2"))
  return methods.offline(
    TinyNet(axis_name=axis_name, norm=norm),
    {"teacher": TinyNet(width=6, norm=norm)},
    [Distillation("kd", per_example(losses.knowledge_distillation)), Distillation("at", at, 10.0)],
  )


@functools.cache
def unequal_peers():
  peers = {f"peer_{width}": TinyNet(width, axis_name=mapping.AXIS_NAME) for width in (4, 3)}
  return methods.mutual(peers)


SCHEMES = {
  "offline": distilling,
  "offline-no-norm": functools.partial(distilling, norm=False),
  "online": unequal_peers,
}


@pytest.mark.parametrize(
  ("name", "count"),
  [
    pytest.param("offline", 2, marks=pytest.mark.long),
    pytest.param("offline", 4, marks=pytest.mark.long),
    ("offline", 8),
    pytest.param("offline-no-norm", 8, marks=pytest.mark.long),
    pytest.param("online", 2, marks=pytest.mark.long),
    pytest.param("online", 4, marks=pytest.mark.long),
    ("online", 8),
  ],
)
def test_several_devices_give_the_parameters_of_one(name, count):
  run = functools.partial(run_steps, SCHEMES[name](), **AUGMENTED)
  one, one_metrics = run(1)
  several, several_metrics = run(count)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  for name, (total, number) in one_metrics.items():
    mean = several_metrics[name][0] / several_metrics[name][1]
    np.testing.assert_allclose(mean, total / number, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("axis_name", [mapping.AXIS_NAME, None], ids=["synced", "per-device"])
def test_replicas_never_diverge(axis_name):
  state, _ = run_steps(distilling(axis_name, True), 8, **AUGMENTED)
  for path, leaf in jax.tree.leaves_with_path(state):
    first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
    assert len(others) == 7
    for other in others:
      np.testing.assert_array_equal(first, other, err_msg=jax.tree_util.keystr(path))


def test_the_teacher_is_neither_trained_nor_are_its_statistics_moved():
  scheme = distilling()
  before = create_state(
    scheme, optax.sgd(0.1, momentum=0.9), jax.random.key(0), batch(), untrained=("teacher",)
  ).participants
  after, _ = run_steps(scheme, 2, steps=2)
  for a, b in zip(
    jax.tree.leaves(before["teacher"]), jax.tree.leaves(after.participants["teacher"]), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)), before["student"], after.participants["student"]
  )
  assert all(jax.tree.leaves(moved["batch_stats"]))


def test_passing_the_teacher_as_frozen_changes_nothing():
  """Up to rounding: another program is compiled."""
  whole, _ = run_steps(distilling(), 2, steps=2)
  frozen, _ = run_steps(distilling(), 2, steps=2, frozen=("teacher",))
  assert jax.tree.structure(whole) == jax.tree.structure(frozen)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(frozen), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_scheme_that_changes_a_frozen_participant_is_refused():
  scheme = distilling()

  def loss(*args):
    total, aux = scheme.loss(*args)
    return total, dataclasses.replace(aux, state={**aux.state, "teacher": {}})

  with pytest.raises(ValueError, match=r"changes the state of \('teacher',\), which do not learn"):
    run_steps(scheme._replace(loss=loss), 1, steps=1)


def test_accumulating_parts_equals_the_whole_batch_without_batch_statistics():
  kd = Distillation("kd", per_example(losses.knowledge_distillation))
  scheme = methods.offline(TinyNet(norm=False), {"teacher": TinyNet(width=6, norm=False)}, [kd])
  whole, whole_metrics = run_steps(scheme, 2, steps=2)
  parts, parts_metrics = run_steps(scheme, 2, steps=2, accumulate=4)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    whole_metrics["loss"][0] / whole_metrics["loss"][1],
    parts_metrics["loss"][0] / parts_metrics["loss"][1],
    rtol=1e-5,
  )


def test_accumulation_moves_batch_statistics_part_after_part():
  scheme = methods.supervised(TinyNet())
  state, _ = run_steps(scheme, 1, steps=1, accumulate=2)
  whole, _ = run_steps(scheme, 1, steps=1)
  mean, whole_mean = (
    s.participants["student"]["batch_stats"]["bn1"]["mean"] for s in (state, whole)
  )
  # Two moves by 0.1 of about the same mean: 0.19 of it instead of 0.1.
  ratio = np.linalg.norm(mean) / np.linalg.norm(whole_mean)
  assert 1.8 < ratio < 2.0


def test_the_moving_average_follows_the_parameters_at_its_decay():
  scheme = methods.supervised(TinyNet(norm=False))
  start = create_state(scheme, optax.sgd(0.1), jax.random.key(0), batch())
  state, _ = run_steps(scheme, 1, steps=1, decay=0.75)
  for before, now, average in zip(
    jax.tree.leaves(start.participants["student"]["params"]),
    jax.tree.leaves(state.participants["student"]["params"]),
    jax.tree.leaves(state.average["student"]),
    strict=True,
  ):
    np.testing.assert_allclose(average, 0.75 * before + 0.25 * now, rtol=1e-5, atol=1e-7)
  averaged = state.predicting["student"]["params"]
  np.testing.assert_array_equal(
    averaged["conv1"]["kernel"], state.average["student"]["conv1"]["kernel"]
  )


class LowNet(nn.Module):
  """One layer of each kind, computing in bfloat16."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Conv(2, (3, 3), dtype=jnp.bfloat16)(images)
    x = nn.BatchNorm(not train, dtype=jnp.bfloat16)(x)
    return Output(nn.Dense(3, dtype=jnp.bfloat16)(x.mean((1, 2))))


def test_bfloat16_computes_low_and_keeps_parameters_in_float32():
  model = LowNet()
  state, metrics = run_steps(methods.supervised(model), 1, steps=1)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.participants)} == {np.dtype("float32")}
  assert np.isfinite(metrics["loss"][0])
  output = jax.eval_shape(model.apply, state.participants["student"], batch().inputs)
  assert output.logits.dtype == jnp.bfloat16


def test_metrics_name_every_term():
  _, metrics = run_steps(distilling(), 2, steps=2)
  assert {"loss", "accuracy", "labels_logit", "kd_logit", "at_feature", "gradient_norm"} == set(
    metrics
  )


def per_device_squares():
  """A scheme without networks: the parameter approaches the mean image of the batch."""

  def loss(learning, participants, data, targets, context: Context):
    difference = learning["student"]["w"] - data.inputs.mean()
    terms = {"square": Terms(feature=difference**2)}
    return difference**2, Aux(terms, {}, {})

  return Scheme(
    init=lambda rng, data: {"student": {"params": {"w": jnp.float32(0)}}},
    targets=lambda participants, data: None,
    loss=loss,
    predict=lambda participants, images: {},
    learners=("student",),
    export=lambda participants: {},
  )


def test_shard_map_needs_its_check_off_to_give_the_same_gradient():
  """With the default check_vma=True the summed cotangent makes gradients N times too large."""
  scheme, optimizer = per_device_squares(), optax.sgd(0.25)
  state = create_state(scheme, optimizer, jax.random.key(0), batch())
  step = training_step(scheme, optimizer, lambda keys, data: data, axis_name="devices")
  data = batch(16)
  mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec
  results = {}
  for check in (False, True):
    mapped = jax.shard_map(
      step, mesh=mesh, in_specs=(spec(), spec("devices")), out_specs=spec(), check_vma=check
    )
    results[check] = float(jax.jit(mapped)(state, data)[0].participants["student"]["params"]["w"])
  expected = 0.5 * float(data.inputs.mean())
  assert results[False] == pytest.approx(expected, rel=1e-5)
  assert results[True] == pytest.approx(8 * expected, rel=1e-5)


def test_uint8_images_are_normalised_to_mean_and_std():
  images = jnp.full((1, 2, 2, 1), 255, jnp.uint8)
  np.testing.assert_allclose(normalize(images, (0.5,), (0.25,)), 2.0)
