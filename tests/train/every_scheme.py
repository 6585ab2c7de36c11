"""One scheme of every kind, on the smallest networks, and its update in any division of a batch."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxkd import losses, methods
from jaxkd.methods import Distillation, per_example, per_label, whole_batch
from jaxkd.models import with_exits
from jaxkd.networks import select
from jaxkd.train import TrainState, training_step
from tests.methods.one_step import jit
from tests.tiny import TinyNet, batch

AXIS = "batch"
SHAPE = (6, 6, 1)
STAGES = ("stage1", "stage2")


class Linear(nn.Module):
  """A connector, or with `shares` a gate, without batch statistics."""

  width: int
  shares: bool = False

  @nn.compact
  def __call__(self, features, train):
    if not self.shares:
      return nn.Dense(self.width)(features)
    return nn.softmax(nn.Dense(self.width)(features.mean((1, 2))))


def offline(net, *distillations, **options):
  return methods.offline(net(), {"teacher": net(axis_name=None)}, distillations, **options)


def at_stages(loss, **options):
  return functools.partial(loss, stages=STAGES, **options)


FEATURES = {
  "at": (at_stages(losses.attention_transfer), 100.0),
  "at_paper": (at_stages(losses.attention_transfer, norm="paper"), 1.0),
  "nst": (at_stages(losses.neuron_selectivity_transfer), 5.0),
  "gaussian": (at_stages(losses.neuron_selectivity_transfer, kernel="gaussian"), 5.0),
  "fsp": (at_stages(losses.flow_of_solution), 1.0),
  "ft": (at_stages(losses.factor_transfer), 5.0),
  "ab": (at_stages(losses.activation_boundaries), 1.0),
  "fitnets": (at_stages(losses.fitnets), 1.0),
}


def exits(net, loss, **options):
  plain = net(axis_name=None)
  output = jax.eval_shape(
    lambda images: plain.init_with_output(jax.random.key(0), images)[0], batch().inputs
  )
  network = with_exits(net(), output, STAGES, kind="linear", num_classes=3)
  return methods.multi_exit(
    network, loss, label_weights=(0.5, 0.5, 1.0), image_shape=SHAPE, **options
  )


_BYOT = functools.partial(
  losses.be_your_own_teacher, feature_weight=0.1, feature_stage="hint", feature_exits=(1,)
)
BYOT = methods.of_exits(_BYOT)
DISTANCE = methods.of_exits(_BYOT, whole=True, feature="distance")


DECOUPLED = per_label(losses.decoupled_distillation, what="decoupled distillation")


@functools.cache
def schemes_of_means(norm):
  """Name -> a scheme whose objective is a mean over examples; `norm`: batch normalisation."""
  net = functools.partial(TinyNet, norm=norm, axis_name=AXIS)
  return {
    "supervised": methods.supervised(net(), label_smoothing=0.1),
    "logits": offline(net, Distillation("kd", per_example(losses.knowledge_distillation), 0.5)),
    "labelled logits": offline(net, Distillation("dkd", DECOUPLED, 0.5)),
    "features": offline(
      net,
      *(Distillation(name, per_example(loss), weight) for name, (loss, weight) in FEATURES.items()),
    ),
    "gradients": offline(
      net,
      Distillation(
        "gradients",
        per_example(losses.gradient_attention_transfer),
        gradients=(("images",), ("images",)),
      ),
    ),
    "mutual": methods.mutual({"one": net(), "two": net(width=3)}),
    "alternating": methods.mutual({"one": net(), "two": net(width=3)}, updates="alternating"),
    "native ensemble": methods.native_ensemble(
      net(), Linear(2, shares=True), branches=2, from_stage="stage1"
    ),
    "multi exit": exits(net, methods.of_exits(losses.multi_exit, teachers="later")),
    "own teacher": exits(net, BYOT, summed=True),
    "simkd": methods.simkd(
      net(),
      net(width=6, axis_name=None),
      Linear(12),
      image_shape=SHAPE,
      stages=("stage2", "stage2"),
      label_weight=1.0,
      kd_weight=0.5,
    ),
    "sequential": methods.fresh_classifier(
      net(), net(axis_name=None), image_shape=SHAPE, kd_weight=0.5
    ),
    "autoencoder": methods.autoencoder(net(axis_name=None), Linear(3), Linear(8), stage="stage2"),
  }


SIMILAR = whole_batch(losses.similarity_preserving, stages=("stage2",))
CONFIDENCE = whole_batch(
  losses.confidence_weighted_by_teacher_max,
  labels=True,
  reason="which divides by what the labels of a batch weigh",
)


@functools.cache
def schemes_of_whole_batches(norm):
  """Name -> a scheme whose objective needs all examples of the batch at once."""
  net = functools.partial(TinyNet, norm=norm, axis_name=AXIS)
  adaptive = methods.AdaptiveTemperature(start=1.5, confidence=0.2, factor=2.0)
  return {
    "rkd": offline(net, Distillation("rkd", whole_batch(losses.relational))),
    "sp": offline(net, Distillation("sp", SIMILAR)),
    "cwtm": offline(net, Distillation("cwtm", CONFIDENCE), label_weight=0.0),
    "own teacher": exits(net, DISTANCE),
    "multi exit": exits(net, methods.of_exits(losses.multi_exit), temperature=adaptive),
  }


def assert_same_update(actual, expected, *, rtol=2e-4, atol=2e-6):
  """Assert equal participants, and equal means of every metric."""
  (participants, metrics), (wanted, reference) = actual, expected
  chex.assert_trees_all_close(participants, wanted, rtol=rtol, atol=atol)
  means, references = (
    {name: total / count for name, (total, count) in found.items()}
    for found in (metrics, reference)
  )
  chex.assert_trees_all_close(means, references, rtol=1e-4, atol=1e-6)


# One for each kind of objective; the others take long to compile.
OFTEN = ("supervised", "logits", "own teacher", "rkd")


def some_often(names):
  """The names as parameters of a test, most of them marked long."""
  return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in names]


def start(scheme, seed=0):
  return jit(scheme.init)(jax.random.key(seed), batch(2))


def update(scheme, participants, data, *, parts=1, devices=1):
  """Participants and metrics after one plain step on the data, divided over devices.

  Without devices (0) the step has no axis and is not mapped.
  """
  optimizer = optax.sgd(1.0)
  axis = AXIS if devices else None
  step = training_step(scheme, optimizer, lambda keys, b: b, axis_name=axis, accumulate=parts)
  state = TrainState(
    jnp.int32(0),
    jax.random.key_data(jax.random.key(0)),
    participants,
    optimizer.init(select(participants, scheme.learners)),
  )
  if not devices:
    state, metrics = jit(step)(state, data)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (state.participants, metrics))
  shared = jax.tree.map(lambda x: jnp.reshape(x, (devices, -1, *x.shape[1:])), data)
  state, metrics = jit(jax.vmap(step, in_axes=(None, 0), axis_name=AXIS))(state, shared)
  return jax.tree.map(lambda x: np.asarray(x[0], np.float64), (state.participants, metrics))
