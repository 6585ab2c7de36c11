"""Outputs with gradients: correct, differentiable, and otherwise equal to the plain outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.losses import gradient_attention_transfer, gradient_symmetry
from jaxkd.methods._gradients import infer_with_gradients, learn_with_gradients
from jaxkd.models import CifarResNet, ReusedClassifier, tap
from jaxkd.networks import infer, learn
from jaxkd.types import Output
from tests.methods.one_step import assert_all_moved, assert_same, jit

B, CLASSES = 4, 3
KEY = jax.random.key(5)
STAGES = ("stage1", "stage2", "pooled")


class Net(nn.Module):
  """Up to two convolutional stages, batch statistics, dropout, a classifier."""

  width: int = 2
  axis_name: str | None = None
  activation: Callable = nn.relu
  dropout: float = 0.3
  depth: int = 2

  @property
  def stages(self):
    return (*STAGES[: self.depth], "pooled")

  def setup(self):
    numbers = range(1, self.depth + 1)
    self.convs = [nn.Conv(self.width * n, (3, 3), strides=n) for n in numbers]
    self.norms = [nn.BatchNorm(momentum=0.9, axis_name=self.axis_name) for _ in numbers]
    self.drop = nn.Dropout(self.dropout)
    self.classifier = nn.Dense(CLASSES)

  def __call__(self, images, train=False):
    return self._from(images, 0, None, train)

  def encode(self, images, train=False, to_stage="pooled"):
    return self._from(images, 0, to_stage, train)

  def resume(self, features, from_stage, train=False, to_stage=None):
    return self._from(features, self.stages.index(from_stage) + 1, to_stage, train)

  def _from(self, x, start, to_stage, train):
    features, preactivations = {}, {}
    for number, stage in enumerate(self.stages[start:], start):
      if stage == "pooled":
        x = x.mean((1, 2))
      else:
        x = self.norms[number](self.convs[number](x), use_running_average=not train)
        preactivations[stage] = x
        x = self.activation(x)
      features[stage] = x
      if stage == to_stage:
        return Output(features=features, preactivations=preactivations)
    x = self.drop(x, deterministic=not train)
    return Output(self.classifier(x), features, preactivations)


def images_of(dtype="float32", seed=0, size=4):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(B, size, size, 2)), dtype)


LABELS = jnp.array([0, 2, 1, 2])
WEIGHTS = jnp.array([1.0, 0.5, 0.0, 2.0])


def started(module, seed=0, size=4):
  """Variables with batch statistics that are not those of the batch."""
  variables = jit(module.init)(jax.random.key(seed), images_of(size=size))
  statistics = jax.tree.map(lambda leaf: leaf + 0.25, variables.get("batch_stats", {}))
  return {**variables, "batch_stats": statistics}


def summed_cross_entropy(logits, labels=LABELS, weights=WEIGHTS):
  return -jnp.sum(weights * jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


@pytest.fixture(scope="module")
def variables():
  return started(Net())


@pytest.fixture(scope="module")
def outcome(variables):
  """Per mode: (Output, changes) with gradients, without, and gradients by another route."""
  net = Net()

  def by_hand(train, images, stages):
    def apply(*inputs, method=None):
      mode = {"train": train, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
      return net.apply(variables, *inputs, method=method, **mode)[0]

    def of_images(images):
      return summed_cross_entropy(apply(images).logits)

    gradients = {"images": jax.grad(of_images)(images)}
    if train:
      mirrored = jax.grad(of_images)(images[:, :, ::-1])
      gradients["flipped_images"] = mirrored[:, :, ::-1]
    features = apply(images).features
    for stage in stages:
      gradients[stage] = jax.grad(
        lambda x, stage=stage: summed_cross_entropy(apply(x, stage, method="resume").logits)
      )(features[stage])
    return gradients

  @jit
  def both(images):
    stages = ("pooled", "images", "flipped_images", "stage1", "stage2")
    few = ("stage1", "images")
    learned = learn_with_gradients(net, variables, images, LABELS, WEIGHTS, stages, KEY)
    inferred = infer_with_gradients(net, variables, images, LABELS, WEIGHTS, few)
    return {
      "train": (learned, learn(net, variables, images, KEY), by_hand(True, images, STAGES)),
      "evaluate": (
        (inferred, {}),
        (infer(net, variables, images), {}),
        by_hand(False, images, ("stage1",)),
      ),
    }

  return both(images_of())


each_mode = pytest.mark.parametrize("mode", ["train", "evaluate"])


@each_mode
def test_gradients_are_those_of_the_summed_cross_entropy(outcome, mode):
  (output, _), _, expected = outcome[mode]
  assert set(output.gradients) == set(expected)
  for stage, gradient in expected.items():
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(
      output.gradients[stage], gradient, rtol=1e-4, atol=1e-6, err_msg=stage
    )


@each_mode
def test_outputs_besides_gradients_equal_those_of_the_plain_call(outcome, variables, mode):
  (output, changes), (plain, plain_changes), _ = outcome[mode]
  bare = dataclasses.replace(output, gradients={})
  assert jax.tree.structure((bare, changes)) == jax.tree.structure((plain, plain_changes))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (bare, changes),
    (plain, plain_changes),
  )
  if mode == "train":
    assert_all_moved({"batch_stats": variables["batch_stats"]}, changes)


def test_an_examples_gradient_is_of_its_own_weighted_loss(outcome):
  (output, _), _, _ = outcome["evaluate"]
  for gradient in output.gradients.values():
    largest = np.abs(gradient).reshape(B, -1).max(axis=1)
    assert largest[2] == 0 and (largest[[0, 1, 3]] > 0).all()


def test_training_couples_the_examples_through_the_batch_statistics(outcome):
  (output, _), _, _ = outcome["train"]
  # The example of weight 0 still moves the losses of the others.
  assert np.abs(output.gradients["images"][2]).max() > 1e-4


class Projector(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.Conv(3, (1, 1))(x)


RESNET = CifarResNet(1, (2, 2, 2, 3), CLASSES)
MODELS = {
  "resnet": RESNET,
  "spliced": ReusedClassifier(Net(), Projector(), RESNET, "stage2", "stage3"),
}


@pytest.mark.parametrize("module", MODELS.values(), ids=MODELS)
def test_the_librarys_models_have_gradients_at_all_their_stages(module):
  images = images_of()

  def all_stages(key):
    variables = module.init(key, images)
    args = (module, variables, images, LABELS, WEIGHTS, ("images", *module.stages), KEY)
    return learn_with_gradients(*args), learn(module, variables, images, KEY)

  (output, changes), plain = jax.eval_shape(all_stages, KEY)
  gradients = {**output.gradients}
  assert gradients.pop("images").shape == images.shape
  assert gradients == output.features
  assert (dataclasses.replace(output, gradients={}), changes) == plain


@jit
def gradients_at_images(variables, images, labels, weights):
  return infer_with_gradients(Net(), variables, images, labels, weights, ("images",)).gradients


def test_labels_may_be_probabilities_and_weights_may_be_none(variables):
  images, one_hot = images_of(), jax.nn.one_hot(LABELS, CLASSES)
  expected = gradients_at_images(variables, images, LABELS, jnp.ones(B))["images"]
  for labels, weights in ((LABELS, None), (one_hot, jnp.ones(B))):
    found = gradients_at_images(variables, images, labels, weights)["images"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_teachers_gradient_of_an_example_does_not_depend_on_the_batch(variables):
  batch = (images_of(), LABELS, jnp.ones(B))
  whole = gradients_at_images(variables, *batch)["images"]
  other = gradients_at_images(variables, *(x.at[2:].set(x[:2]) for x in batch))["images"]
  np.testing.assert_allclose(other[:2], whole[:2], rtol=1e-4, atol=1e-6)
  assert np.abs(other[2:] - whole[2:]).max() > 1e-3


@jit
def matching(params, statistics, images, target):
  """An objective with gradients at the images and at a stage, and its derivative."""
  stages = ("images", "stage1")

  def objective(params):
    variables = {"params": params, "batch_stats": statistics}
    args = (Net(activation=nn.softplus), variables, images, LABELS, WEIGHTS, stages, KEY)
    output, _ = learn_with_gradients(*args)
    return gradient_attention_transfer(output, target, stages=stages, normalize=True).total

  return jax.value_and_grad(objective)(params)


@pytest.fixture(scope="module")
def matched(variables):
  """Parameters -> `matching` in float64, and parameters; arrays of numpy."""
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), variables)
    images, *drawn = (images_of("float64", seed) for seed in (0, 3, 4))
    target = Output(gradients=dict(zip(("images", "stage1"), drawn, strict=True)))

    def at(params):
      with jax.enable_x64(True):
        found = matching(params, wide["batch_stats"], images, target)
        return jax.tree.map(np.asarray, found)

  return at, jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), variables["params"])


def test_second_derivatives_agree_with_finite_differences(matched):
  at, params = matched
  rng = np.random.default_rng(2)
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

  def moved(step):
    return at(jax.tree.map(lambda p, d: p + step * d, params, direction))[0]

  value, gradients = at(params)
  assert value.dtype == np.float64
  exact = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradients, direction)))
  np.testing.assert_allclose(exact, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-7)
  for layer, kind in (("convs_0", "kernel"), ("norms_1", "scale"), ("classifier", "kernel")):
    assert np.abs(gradients[layer][kind]).max() > 1e-3


def test_gradients_of_zero_can_be_differentiated(matched):
  at, params = matched
  dead = jax.tree.map(np.zeros_like, params)
  for start in (dead, {**params, "classifier": dead["classifier"]}):
    value, gradients = at(start)
    assert value > 1 and all(np.abs(leaf).max() < 1e3 for leaf in jax.tree.leaves(gradients))


def test_teacher_gets_no_gradient(variables):
  other = started(Net(), seed=1)

  @jit
  def gradient(teacher):
    def loss(teacher):
      target = infer_with_gradients(Net(), teacher, images_of(), LABELS, None, ("images",))
      output = infer_with_gradients(Net(), variables, images_of(), LABELS, None, ("images",))
      return gradient_attention_transfer(output, target).total

    return jax.value_and_grad(loss)(teacher)

  value, gradients = gradient(other)
  assert value > 0.01
  assert_same(gradients, jax.tree.map(jnp.zeros_like, other))


def test_devices_that_share_statistics_have_the_gradients_of_the_whole_batch():
  # Dropout draws per device, so there is none here.
  whole, shared = (Net(depth=1, dropout=0.0, axis_name=name) for name in (None, "batch"))
  variables = started(whole)

  def differentiated(module, *batch):
    def value(params, images, labels, weights, teacher):
      learner = {**variables, "params": params}
      args = (module, learner, images, labels, weights, ("images",), KEY)
      output, changes = learn_with_gradients(*args)
      return gradient_attention_transfer(output, teacher).total, (changes, output.gradients)

    return jax.value_and_grad(value, has_aux=True)(variables["params"], *batch)

  def on_device(*batch):
    (loss, (changes, gradients)), slopes = differentiated(shared, *batch)
    return jax.lax.pmean((loss, changes, slopes), "batch"), gradients

  batch = (images_of(), LABELS, WEIGHTS, Output(gradients={"images": images_of(seed=3)}))
  (loss, (changes, gradients)), slopes = jit(lambda *b: differentiated(whole, *b))(*batch)
  split = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
  mapped = jax.pmap(on_device, "batch", out_axes=(None, 0), devices=jax.devices()[:2])
  averaged, found = mapped(*split)
  joined = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), found)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    (averaged, joined),
    ((loss, changes, slopes), gradients),
  )


class Mirror(nn.Module):
  """A network whose only view of left and right is its kernel."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.softplus(nn.Conv(3, (3, 3), name="conv")(images))
    return Output(nn.Dense(CLASSES)(x.mean((1, 2))))


def test_only_a_mirror_symmetric_network_has_symmetric_gradients():
  drawn = jit(Mirror().init)(KEY, images_of())["params"]
  kernel = drawn["conv"]["kernel"]
  symmetric = {**drawn, "conv": {**drawn["conv"], "kernel": kernel + kernel[:, ::-1]}}

  @jit
  def penalty(params):
    variables = {"params": params}
    stages = ("images", "flipped_images")
    args = (Mirror(), variables, images_of(), LABELS, WEIGHTS, stages, KEY)
    return gradient_symmetry(learn_with_gradients(*args)[0]).feature

  assert penalty(symmetric) < 1e-6
  assert penalty(drawn) > 1e-2


def test_a_model_without_resume_has_gradients_at_its_images():
  model = nn.Sequential([lambda x: x.reshape(B, -1), nn.Dense(CLASSES)])
  tapped = tap(model, {"logits": "layers_1"})
  variables = jit(tapped.init)(KEY, images_of())
  args = (tapped, variables, images_of(), LABELS, None)
  output, changes = jit(lambda: learn_with_gradients(*args, ("images",), KEY))()
  kernel = variables["params"]["layers_1"]["kernel"]
  slope = jax.nn.softmax(output.logits) - jax.nn.one_hot(LABELS, CLASSES)
  np.testing.assert_allclose(
    output.gradients["images"].reshape(B, -1), slope @ kernel.T, rtol=1e-5, atol=1e-6
  )
  assert changes == {} and set(output.features) == {"logits"}
  with pytest.raises(ConfigError, match=r"no gradients at stage 'logits': .* cannot resume"):
    learn_with_gradients(*args, ("images", "logits"), KEY)


class OneStop(Net):
  """A model as published before `to_stage`: it resumes to the end only."""

  def resume(self, features, from_stage, train=False):
    return super().resume(features, from_stage, train)


class Staged(Mirror):
  stages = ("stage1",)


class Exits(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return (Output(images.mean((1, 2))),) * 2


def test_gradients_at_one_stage_need_no_to_stage_in_resume(variables):
  args = (OneStop(), variables, images_of(), LABELS, None)
  stages = ("stage1", "images")
  gradients = jax.eval_shape(lambda: infer_with_gradients(*args, stages).gradients)
  assert gradients["stage1"].shape == (B, 4, 4, 2)


@pytest.mark.parametrize(
  ("module", "stages", "message"),
  [
    (Net(), ("stage3",), "unknown stage 'stage3': did you mean .*stage2.* known: flipped_images"),
    (Net(), "images", r"stages is 'images': write \('images',\)"),
    (OneStop(), ("pooled", "stage1"), r"OneStop's resume takes no to_stage: .*'stage1', 'pooled'"),
    (Exits(), ("images",), "the model must return one Output, with logits"),
    (Mirror(), ("stage1",), "unknown stage 'stage1'.*known: flipped_images, images"),
    (Staged(), ("stage1",), r"Staged has no encode and resume.* at stage 'stage1': only at"),
  ],
)
def test_impossible_gradients_are_refused(variables, module, stages, message):
  with pytest.raises(ConfigError, match=message):
    infer_with_gradients(module, variables, images_of(), LABELS, None, stages)


@pytest.mark.parametrize("stages", [(), ("flipped_images",)])
def test_only_requested_gradients_are_returned(variables, stages):
  args = (Net(), variables, images_of(), LABELS, WEIGHTS, stages, KEY)
  output, _ = jax.eval_shape(lambda: learn_with_gradients(*args))
  assert tuple(output.gradients) == stages and output.logits.shape == (B, CLASSES)
