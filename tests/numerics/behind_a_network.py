"""Every loss behind a small network, in a program compiled with full optimisation.

Other tests compile without optimisation. Only the optimising compiler contracts a multiplication
of the network with a subtraction of the loss.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxkd import losses
from jaxkd.runtime.fast_compilation import FAST_OPTIONS, HAS_OLDER_EMITTERS
from jaxkd.types import Output
from tests import rows
from tests.rows._networked import (
  BOTH,
  INNER,
  Case,
  of,
  of_exits,
  of_logits,
  of_multi_hot,
  of_tokens,
)

# jax's defaults, which tests/conftest.py overrides.
OPTIMISED = {"xla_backend_optimization_level": 3}
if HAS_OLDER_EMITTERS:
  OPTIMISED["xla_cpu_use_fusion_emitters"] = True
# For float64 references, which are accurate without optimisation, too.
PLAIN = FAST_OPTIONS

BATCH_SIZES = range(1, 18)
SCALES = (1e-18, 1e-14, 1e-6, 1.0, 1e3, 1e8)


def network(weights, images, scale):
  """Two convolutions, each followed by pooling, and a classifier; outputs times `scale`."""
  convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  first = convolve(images, weights["conv1"])
  stage1 = jax.nn.relu(first)
  halved = stage1.reshape(stage1.shape[0], 3, 2, 3, 2, -1).mean((2, 4))
  second = convolve(halved, weights["conv2"])
  stage2 = jax.nn.relu(second)
  pooled = stage2.mean((1, 2))
  three = first[..., :3]
  return Output(
    logits=(pooled @ weights["classifier"]) * scale,
    features={"stage1": stage1 * scale, "stage2": stage2 * scale, "pooled": pooled * scale},
    preactivations={"stage1": first * scale, "stage2": second * scale},
    gradients={"images": three * scale, "flipped_images": three[:, :, ::-1] * scale},
  )


CASES = {
  "cross_entropy": Case(lambda s, t, y: losses.cross_entropy(s.logits, y), of_logits=True),
  "cross_entropy weighted and smoothed": Case(
    lambda s, t, y: losses.cross_entropy(
      s.logits, y, label_smoothing=0.1, class_weights=(0.5, 2.0, 1.0, 0.0, 3.0)
    ),
    of_logits=True,
  ),
  "sigmoid_cross_entropy": of_multi_hot(),
  "sigmoid_cross_entropy smoothed": of_multi_hot(label_smoothing=0.1, classes="sum"),
  "sigmoid_distillation": of_logits(losses.sigmoid_distillation),
  "sigmoid_distillation T=4": of_logits(losses.sigmoid_distillation, temperature=4.0),
  "knowledge_distillation": of_logits(losses.knowledge_distillation),
  "knowledge_distillation T=1": of_logits(losses.knowledge_distillation, temperature=1.0),
  "fitnets": of(losses.fitnets, stages=INNER),
  "fitnets tokens": of_tokens(losses.fitnets),
  "simkd": of(losses.simkd, stages=INNER),
  "attention_transfer": of(losses.attention_transfer, stages=BOTH),
  "attention_transfer power 4": of(losses.attention_transfer, stages=BOTH, power=4),
  "attention_transfer power 1": of(losses.attention_transfer, stages=BOTH, power=1),
  "attention_transfer paper": of(losses.attention_transfer, stages=BOTH, norm="paper"),
  "neuron_selectivity_transfer": of(losses.neuron_selectivity_transfer, stages=BOTH),
  "neuron_selectivity_transfer gaussian": of(
    losses.neuron_selectivity_transfer, stages=INNER, kernel="gaussian"
  ),
  "neuron_selectivity_transfer linear": of(
    losses.neuron_selectivity_transfer, stages=INNER, kernel="linear"
  ),
  "neuron_selectivity_transfer cubic": of(
    losses.neuron_selectivity_transfer, stages=INNER, degree=3, offset=0.5
  ),
  "flow_of_solution": of(losses.flow_of_solution, stages=BOTH),
  "flow_of_solution columns": of(losses.flow_of_solution, stages=BOTH, norm="columns", pool="max"),
  "factor_transfer": of(losses.factor_transfer, stages=INNER),
  "factor_transfer order 2": of(losses.factor_transfer, stages=INNER, order=2),
  "factor_transfer maps": of(losses.factor_transfer, stages=INNER, normalization="repdistiller"),
  "activation_boundaries": of(losses.activation_boundaries, stages=BOTH),
  "activation_boundaries tokens": of_tokens(losses.activation_boundaries, arrays="features"),
  "relational": of(losses.relational),
  "relational distances": of(losses.relational, angle_weight=0.0),
  "relational squared": of(losses.relational, angle_weight=0.0, squared=True),
  "relational angles": of(losses.relational, distance_weight=0.0),
  "relational normalised": of(losses.relational, normalize_student=True, normalize_teacher=True),
  "relational maps": of(losses.relational, stages=("stage1",)),
  "relational tokens": of_tokens(losses.relational),
  "gradient_attention_transfer": of(losses.gradient_attention_transfer),
  "gradient_attention_transfer normalised": of(losses.gradient_attention_transfer, normalize=True),
  "gradient_attention_transfer mse": of(
    losses.gradient_attention_transfer, norm="mse", normalize=True, reduce="abs_mean"
  ),
  "gradient_symmetry": Case(lambda s, t, y: losses.gradient_symmetry(s).total),
  "mutual": Case(lambda s, t, y: losses.mutual(s, [t, Output(-t.logits)]).total, of_logits=True),
  "mutual, authors' smoothing": Case(
    lambda s, t, y: losses.mutual(s, [t], ratio_smoothing=1e-8).total, of_logits=True
  ),
  "native_ensemble": Case(
    lambda s, t, y: losses.native_ensemble([s, Output(s.logits[:, ::-1])], t).total,
    of_logits=True,
  ),
  "multi_exit": of_exits(losses.multi_exit),
  "multi_exit ensemble": of_exits(
    losses.multi_exit, teachers="ensemble", divergence="kl", average="mean"
  ),
  "be_your_own_teacher": of_exits(losses.be_your_own_teacher, feature_weight=1.0),
  "be_your_own_teacher distance": of_exits(
    losses.be_your_own_teacher, feature="distance", feature_weight=1.0
  ),
  "confidence_weighted_by_teacher_max": Case(
    lambda s, t, y: losses.confidence_weighted_by_teacher_max(s, t, y).total, of_logits=True
  ),
  "dark_knowledge_permuted": Case(
    lambda s, t, y: losses.dark_knowledge_permuted(s, t, jax.random.key(0)).total,
    of_logits=True,
  ),
}
CASES.update(rows.merged("BEHIND_A_NETWORK"))


def draw(batch_size: int, *, duplicates: bool = False) -> tuple[Any, ...]:
  """Draw float32 (student's weights, teacher's weights, its images, teacher's images, labels)."""
  rng = np.random.default_rng(batch_size)

  def normal(*shape, size=1.0):
    return (size * rng.normal(size=shape)).astype("float32")

  def weights():
    return {
      "conv1": normal(3, 3, 3, 8, size=0.4),
      "conv2": normal(3, 3, 8, 6, size=0.3),
      "classifier": normal(6, 5),
    }

  student, teacher = weights(), weights()
  images, others = normal(batch_size, 6, 6, 3), normal(batch_size, 6, 6, 3)
  if duplicates:
    images[-1] = images[batch_size // 2] = images[0]
  return student, teacher, images, others, rng.integers(0, 5, batch_size).astype("int32")


def program(names: tuple[str, ...], *, options: dict[str, Any], vmapped: bool = False):
  """Compile (weights, teacher, images, others, labels, scale) -> {name: (value, gradient)}."""

  def run(weights, teacher, images, others, labels, scale):
    target = network(teacher, others, jnp.ones_like(scale))

    def value_and_gradient(loss):
      def objective(weights):
        return loss(network(weights, images, scale), target, labels)

      return jax.value_and_grad(objective)(weights)

    return {name: value_and_gradient(CASES[name].loss) for name in names}

  return jax.jit(jax.vmap(run) if vmapped else run, compiler_options=options)


def cast(tree: Any, dtype: Any) -> Any:
  """Cast the floating arrays of a tree to another dtype."""
  return jax.tree.map(lambda x: np.asarray(x, dtype) if x.dtype.kind == "f" else x, tree)


def reference(names: tuple[str, ...], drawn: Any, scale: float) -> dict[str, Any]:
  """Value and gradient of each case in float64, from the same float32 inputs."""
  with jax.enable_x64(True):
    found = _reference_program(names)(*cast(drawn, "float64"), np.float64(np.float32(scale)))
    return jax.device_get(found)


@functools.cache
def _reference_program(names):
  return program(names, options=PLAIN)


def disagreement(name: str, found: Any, wanted: Any, scale: float, resolution: float = 1e-7) -> str:
  """Describe errors of a value and its gradient that exceed rounding; "" if there are none.

  Args:
    name: name of the case.
    found: (value, gradient by weight).
    wanted: the same in float64.
    scale: factor of the network's outputs.
    resolution: relative precision of the network's computation.
  """
  (value, gradient), (true_value, true_gradient) = found, wanted
  # Logits of size s have an error of s roundings, and so have their loss and its gradient.
  natural = abs(float(true_value)) + (scale if CASES[name].of_logits else 0.0)
  allowed = 1e3 * resolution * abs(float(true_value)) + 30 * resolution * natural + 1e-10
  wrong = []
  if not abs(float(value) - float(true_value)) <= allowed:
    wrong.append(f"value {float(value):.6g}, in float64 {float(true_value):.6g}")
  largest = max(np.abs(g).max() for g in true_gradient.values())
  allowed = 1e4 * resolution * largest + 30 * resolution * natural + 1e-10
  for weight, true in true_gradient.items():
    off = np.abs(np.asarray(gradient[weight], np.float64) - true).max()
    if not off <= allowed:
      wrong.append(f"gradient of {weight} off by {off:.3g}, largest {largest:.3g}")
  return f"{name}, scale {scale:g}: {'; '.join(wrong)}" if wrong else ""
