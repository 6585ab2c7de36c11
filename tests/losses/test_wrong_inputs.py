"""Errors for arrays given to losses and Outputs given to kernels, with the remedy."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.losses._checks import KERNELS
from jaxkd.types import Output
from tests import rows

Z, KEY, LABELS = jnp.ones((2, 3)), jax.random.key(0), jnp.array([0, 1])
X = jnp.ones((2, 4, 4, 3))
GOOD = Output(
  Z,
  dict.fromkeys(["stage1", "stage2", "stage3", "pooled", "hint"], X),
  dict.fromkeys(["stage1", "stage2", "stage3"], X),
  dict.fromkeys(["images", "flipped_images"], X),
)

# Calls of the losses whose arguments are not (student, teacher).
CALLS = {
  "be_your_own_teacher": lambda s, t: losses.be_your_own_teacher([s, t]),
  "confidence_weighted_by_teacher_max": lambda s, t: losses.confidence_weighted_by_teacher_max(
    s, t, LABELS
  ),
  "dark_knowledge_permuted": lambda s, t: losses.dark_knowledge_permuted(s, t, KEY),
  "gated_logits": lambda s, t: losses.gated_logits([s, t], jnp.ones((2, 2))),
  "gradient_symmetry": lambda s, t: losses.gradient_symmetry(s if s is not GOOD else t),
  "multi_exit": lambda s, t: losses.multi_exit([s, t]),
  "mutual": lambda s, t: losses.mutual(s, [t]),
  "native_ensemble": lambda s, t: losses.native_ensemble([s], t),
  **rows.merged("CALLS"),
}


def on_outputs(name):
  first = next(iter(inspect.signature(getattr(losses, name)).parameters.values()))
  return "Output" in str(first.annotation)


LOSSES = sorted(filter(on_outputs, losses.__all__))
ARRAYS = [
  (Z, r"an array \(2, 3\)"),
  (np.ones((2, 3)), r"an array \(2, 3\)"),
  ([[1.0, 2.0], [3.0, 4.0]], "a list of 2"),
  ((Z, Z), "a tuple of 2"),
  (None, "None"),
]


def test_kernels_table_lists_every_loss_on_outputs():
  assert set(KERNELS) == set(LOSSES) - {"gated_logits"}
  for kernels in KERNELS.values():
    assert set(kernels) <= set(losses.__all__) - set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("value", "described"), ARRAYS)
def test_error_for_arrays_in_place_of_outputs_names_the_kernels(name, value, described):
  call = CALLS.get(name, getattr(losses, name))
  call(GOOD, GOOD)
  taker = name
  for pair in ((value, GOOD), (GOOD, value)):
    with pytest.raises(
      ConfigError, match=rf"{taker} takes Outputs, got {described} as the "
    ) as found:
      call(*pair)
    message = str(found.value)
    assert "Output(" in message
    if name in KERNELS and name in message and value is not None:
      assert f"call {' or '.join(KERNELS[name])} for arrays" in message


def test_error_message_for_an_array_in_full():
  with pytest.raises(ConfigError) as found:
    losses.knowledge_distillation(Z, Z)
  assert str(found.value) == (
    "knowledge_distillation takes Outputs, got an array (2, 3) as the student: "
    "call soft_target_kl or soft_target_divergence or top_k_divergence for arrays, "
    "or wrap it as Output(logits=...)"
  )


def test_error_for_a_tuple_of_outputs_advises_one_of_them():
  with pytest.raises(
    ConfigError, match=r"got a tuple of 2 as the teacher: give one of the Outputs"
  ):
    losses.knowledge_distillation(GOOD, (GOOD, GOOD))


@pytest.mark.parametrize(
  "call",
  [
    losses.multi_exit,
    losses.be_your_own_teacher,
    lambda x: losses.mutual(GOOD, x),
    lambda x: losses.native_ensemble(x, GOOD),
    lambda x: losses.gated_logits(x, jnp.ones((2, 1))),
  ],
)
def test_error_for_a_wrong_list_of_outputs_describes_it(call):
  with pytest.raises(ConfigError, match=r"must be a list of Outputs, got one: write \[output\]"):
    call(GOOD)
  for value, described in ((Z, "an array"), (None, "None"), ({"a": GOOD}, "a dict of 1")):
    with pytest.raises(ConfigError, match=rf"takes a list of Outputs, got {described}"):
      call(value)


# Further positional arguments of kernels.
MORE = {
  "adaptive_average_pool": (2, 2),
  "adaptive_max_pool": (2, 2),
  "confidence_weighted_cross_entropy": (LABELS,),
  "cross_entropy": (LABELS,),
  "permute_wrong_classes": (KEY,),
  "permuted_soft_target_kl": (KEY,),
  "sigmoid_cross_entropy": (LABELS,),
  **rows.merged("MORE"),
}
ONE_SIDED = {
  "adaptive_average_pool", "adaptive_max_pool", "attention_map", "cross_entropy",
  "mean_confidence", "permute_wrong_classes", "sigmoid_cross_entropy", *rows.joined("ONE_SIDED"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(losses.__all__) - set(LOSSES)))
@pytest.mark.parametrize("value", [GOOD, Output(features={"stage2": X}), None, [GOOD, GOOD]])
def test_error_for_outputs_in_place_of_arrays_names_loss_and_array(name, value):
  call, more = getattr(losses, name), MORE.get(name, ())
  sides = [(value,)] if name in ONE_SIDED else [(value, value), (X, value), (value, X)]
  if name == "adapted_temperature":
    sides = [(1.0, value)]
  for pair in sides:
    with pytest.raises(
      ConfigError, match=r"takes arrays, got (an Output|None|a list of 2)"
    ) as found:
      call(*pair, *more)
    if isinstance(value, Output):
      array = "output.logits" if value is GOOD else 'output.features["stage2"]'
      assert f"give an array of it, as {array}" in str(found.value)
    for loss, kernels in KERNELS.items():
      if name in kernels and isinstance(value, Output):
        assert name in str(found.value) and loss in str(found.value)


def test_objects_with_the_attributes_of_an_output_are_accepted():
  class Found:
    logits = Z

  assert losses.knowledge_distillation(Found(), Found()).total == 0
