"""DOT: two momenta, against numpy and SGD; gradients by term, in the step and on its parts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import AtStages
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.methods import Distillation, per_example
from jaxkd.networks import select
from jaxkd.train import TrainState, make_optimizer, take_turns, training_step
from jaxkd.train.by_term import LABELS, OTHERS, gradients_by_term, whole_gradient
from jaxkd.train.dot import dot
from jaxkd.train.nonfinite import scale_updates
from tests.methods.one_step import context, jit, start
from tests.test_bad_input import dataset, settings_for
from tests.tiny import TinyNet, batch
from tests.train.every_scheme import Linear
from tests.train.test_resume import Broken, StopAfter, assert_same, train

RATE, MOMENTUM, DELTA, DECAY = 0.1, 0.8, 0.15, 0.3


def numbers(seed, shape=(3, 2)):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def expected(w, gradients, *, decay=DECAY):
  """The trajectory by the paper's equations, with one buffer where there is one gradient."""
  v, u, found = np.zeros_like(w), np.zeros_like(w), []
  for g, h in gradients:
    both = g is not None and h is not None
    if g is not None:
      v = (MOMENTUM - DELTA * both) * v + g + decay * w
    if h is not None:
      u = (MOMENTUM + DELTA * both) * u + h + (decay * w if g is None else 0)
    w = w - RATE * (v + u)
    found.append(w)
  return found


def trajectory(optimizer, w, gradients):
  w, found = jnp.asarray(w, jnp.float32), []
  state = optimizer.init({"w": w})
  for g, h in gradients:
    updates, state = optimizer.update({LABELS: {"w": g}, OTHERS: {"w": h}}, state, {"w": w})
    w = optax.apply_updates({"w": w}, updates)["w"]
    found.append(w)
  return found


@pytest.mark.parametrize("reached", ["both", "labels", "others"])
def test_updates_are_those_of_the_papers_equations(reached):
  gradients = [(numbers(2 * k), numbers(2 * k + 1)) for k in range(4)]
  if reached != "both":
    gradients = [(g, None) if reached == "labels" else (None, h) for g, h in gradients]
  made = make_optimizer(
    "dot",
    lambda count: RATE,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    arguments={"delta": DELTA},
  )
  actual = trajectory(made, numbers(9), gradients)
  for ours, theirs in zip(actual, expected(numbers(9), gradients), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_late_decay_leaves_it_out_at_the_first_update_of_what_distillation_alone_reaches():
  gradients = [(None, numbers(k)) for k in range(2)]
  options = {"momentum": MOMENTUM, "delta": DELTA}
  late = dot(lambda count: RATE, weight_decay=DECAY, late_decay=True, **options)
  none = dot(lambda count: RATE, **options)
  ours, plain = (trajectory(o, numbers(9), gradients) for o in (late, none))
  np.testing.assert_array_equal(ours[0], plain[0])
  assert np.abs(ours[1] - plain[1]).max() > 1e-3


def test_without_a_difference_it_is_sgd_on_the_sum_with_its_clipping():
  gradients = [(numbers(2 * k), numbers(2 * k + 1)) for k in range(4)]
  options = {"momentum": MOMENTUM, "weight_decay": DECAY, "clip_norm": 1.5}
  ours = make_optimizer("dot", lambda count: RATE, arguments={"delta": 0}, **options)
  sgd = make_optimizer("sgd", lambda count: RATE, **options)
  w = jnp.asarray(numbers(9), jnp.float32)
  state = sgd.init(w)
  for (g, h), actual in zip(gradients, trajectory(ours, w, gradients), strict=True):
    updates, state = sgd.update(jnp.float32(g + h), state, w)
    w = w + updates
    np.testing.assert_allclose(actual, w, rtol=1e-5, atol=1e-6)


def test_a_parameter_that_nothing_reaches_does_not_change():
  [w] = trajectory(dot(lambda count: RATE, weight_decay=DECAY), numbers(9), [(None, None)])
  np.testing.assert_array_equal(w, np.float32(numbers(9)))


@functools.cache
def scheme(label_weight=0.5):
  """Labels, and a hint at the first stage: later layers learn from labels alone."""
  net = functools.partial(TinyNet, norm=False)
  loss = per_example(losses.fitnets, stages=("stage1",))
  hint = Distillation("hint", loss, 0.7, adapter=AtStages({"stage1": Linear(4)}))
  return methods.offline(net(), {"teacher": net()}, [hint], label_weight=label_weight)


def updated(scheme, participants, optimizer, *, parts=1, devices=1):
  """The participants after one update, and its metrics."""
  options = {"axis_name": "batch" if devices > 1 else None, "accumulate": parts}
  step = training_step(scheme, optimizer, lambda keys, data: data, **options)
  first = optimizer.init(select(participants, scheme.learners))
  state = TrainState(jnp.int32(0), jax.random.key_data(jax.random.key(0)), participants, first)
  if devices == 1:
    state, metrics = jit(step)(state, batch(8))
    return state.participants, metrics
  shared = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch(8))
  mapped = jax.vmap(step, in_axes=(None, 0), axis_name="batch")
  state, metrics = jax.tree.map(lambda x: x[0], jit(mapped)(state, shared))
  return state.participants, metrics


def test_each_gradient_is_that_of_its_terms_and_none_where_they_do_not_reach():
  learning = select(start(scheme()), scheme().learners)
  everyone = start(scheme())
  targets = scheme().targets(everyone, batch())
  rest = (everyone, batch(), targets, context())
  (loss, _), found = jit(lambda x: gradients_by_term(scheme().loss, x, *rest))(learning)
  whole = jit(jax.grad(lambda x: scheme().loss(x, *rest)[0]))(learning)
  alone = jit(jax.grad(lambda x: scheme().loss(x, *rest)[1].terms["labels"].total))(learning)
  chex.assert_trees_all_close(whole_gradient(found), whole, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(found[LABELS]["student"], alone["student"], rtol=1e-5, atol=1e-7)
  assert np.isfinite(loss)
  student, adapter = found[OTHERS]["student"], found[LABELS]["hint_adapter"]
  assert set(jax.tree.leaves(student["conv2"], is_leaf=lambda x: x is None)) == {None}
  assert set(jax.tree.leaves(adapter, is_leaf=lambda x: x is None)) == {None}
  assert None not in jax.tree.leaves(student["conv1"], is_leaf=lambda x: x is None)
  assert None not in jax.tree.leaves(found[OTHERS]["hint_adapter"], is_leaf=lambda x: x is None)


MADE = make_optimizer("dot", optax.constant_schedule(1.0), weight_decay=0.1, clip_norm=2.0)


@pytest.mark.parametrize(
  ("parts", "devices"),
  [(4, 1), pytest.param(2, 2, marks=pytest.mark.long), pytest.param(1, 8, marks=pytest.mark.long)],
)
def test_parts_of_a_batch_give_the_update_of_the_whole_batch(parts, devices):
  participants = start(scheme())
  expected, metrics = updated(scheme(), participants, MADE)
  actual, found = updated(scheme(), participants, MADE, parts=parts, devices=devices)
  chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)
  total, count = found["gradient_norm"]
  np.testing.assert_allclose(total / count, metrics["gradient_norm"][0], rtol=1e-5)


@pytest.mark.long
def test_second_update_behind_a_network_has_a_momentum_for_each_term():
  participants = start(scheme())
  made = make_optimizer("dot", optax.constant_schedule(0.1))
  step = training_step(scheme(), made, lambda keys, data: data, axis_name=None)
  first = made.init(select(participants, scheme().learners))
  state = TrainState(jnp.int32(0), jax.random.key_data(jax.random.key(0)), participants, first)
  targets = scheme().targets(participants, batch())

  @jit
  def gradient(state):
    rest = (state.participants, batch(), targets, context())
    learning = select(state.participants, scheme().learners)
    found = gradients_by_term(scheme().loss, learning, *rest)[1]
    return [found[name]["student"]["conv1"]["kernel"] for name in (LABELS, OTHERS)]

  def kernel(state):
    return state.participants["student"]["params"]["conv1"]["kernel"]

  after = jit(step)(state, batch())[0]
  last = jit(step)(after, batch())[0]
  buffers = [
    m * g + h for m, g, h in zip((0.825, 0.975), gradient(state), gradient(after), strict=True)
  ]
  change = kernel(last) - kernel(after)
  np.testing.assert_allclose(change, -0.1 * sum(buffers), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_phase_of_labels_is_that_of_sgd_and_resumes_exactly(tmp_path):
  rate = optax.cosine_decay_schedule(0.05, 12)
  made = {"optimizer": make_optimizer("dot", rate, weight_decay=0.01)}
  expected = train(tmp_path / "whole", **made)
  sgd = train(tmp_path / "sgd", optimizer=make_optimizer("sgd", rate, weight_decay=0.01))
  chex.assert_trees_all_close(expected.participants, sgd.participants, rtol=1e-4, atol=1e-5)
  with pytest.raises(Broken):
    train(tmp_path / "cut", StopAfter(7), checkpoint_seconds=0.0, **made)
  assert_same(train(tmp_path / "cut", **made).participants, expected.participants)


def test_a_rollback_scales_its_updates_and_keeps_its_type():
  gradients = [(numbers(2 * k), numbers(2 * k + 1)) for k in range(2)]
  halved = scale_updates(dot(lambda count: RATE), 0.5)
  direct = dot(lambda count: RATE / 2)
  assert isinstance(halved, type(direct))
  pairs = zip(*(trajectory(o, numbers(9), gradients) for o in (halved, direct)), strict=True)
  for ours, theirs in pairs:
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_config_names_it_with_its_delta():
  student = {"optimizer": "dot", "optimizer_arguments": "delta=0.09", "momentum": 0.9}
  settings = settings_for("kd", student=student)
  config.check_config(settings)
  phases = build.phases(settings, dataset(), traced=False)
  gradients = [(numbers(0, (2,)), numbers(1, (2,)))] * 2
  direct = dot(lambda count: 1.0, delta=0.09, weight_decay=settings.student.weight_decay)
  w = numbers(9, (2,))
  ours = trajectory(phases[-1].optimizer, w, gradients)
  theirs = trajectory(direct, w, gradients)
  rate = settings.student.learning_rate
  np.testing.assert_allclose(ours[0] - w, rate * (theirs[0] - w), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("student", "message"),
  [
    ({"nesterov": True}, "student.optimizer: nesterov=True: expected False"),
    ({"momentum": 0.0}, "student.optimizer: delta=0.075 with momentum=0: expected a number"),
    ({"optimizer_arguments": "delta=0.1"}, "optimizer_arguments: delta=0.1 with momentum=0.9"),
    ({"optimizer_arguments": "delta=-0.1"}, "optimizer_arguments: delta=-0.1"),
    ({"optimizer_arguments": "delta=x"}, "optimizer_arguments: delta='x': expected a number"),
    ({"optimizer_arguments": "delt=0.1"}, "unknown argument of optimizer 'dot' 'delt': did you"),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(student, message):
  settings = settings_for("kd", student={"optimizer": "dot", "nesterov": False, **student})
  with pytest.raises(ConfigError, match=message) as caught:
    config.check_config(settings)
  assert "\n" not in str(caught.value)


def test_networks_updated_in_turn_are_refused():
  with pytest.raises(ConfigError, match="optimizer='dot': expected another one where networks"):
    take_turns(dot(lambda count: RATE), ["one", "two"])
