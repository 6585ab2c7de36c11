"""Argument checks of the losses, and the stage arrays that a loss compares."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import Output

# A stage's name where student and teacher share it, else (student's stage, teacher's stage).
Stage = str | tuple[str, str]
Stages = Sequence[Stage]
# The fields of an Output that hold stage arrays.
Arrays = Literal["features", "preactivations", "gradients"]

_ARRAYS: tuple[str, ...] = get_args(Arrays)

# For each loss on Outputs, the kernels on arrays that compute it; error messages name them.
KERNELS: dict[str, tuple[str, ...]] = {
  "activation_boundaries": ("boundary_margin",),
  "attention_transfer": ("attention_map_mse", "attention_map_l2"),
  "be_your_own_teacher": ("soft_cross_entropy", "masked_sum_of_squares", "euclidean_distance"),
  "channel_wise": ("channel_divergence",),
  "class_attention": ("class_activation_mse",),
  "confidence_weighted_by_teacher_max": ("confidence_weighted_cross_entropy",),
  "correlation_congruence": ("kernel_correlation", "adjacent_products"),
  "contrastive_representation": ("contrastive_nce",),
  "curriculum_temperature": ("temperature_kl",),
  "dark_knowledge_permuted": ("permuted_soft_target_kl",),
  "decoupled_distillation": ("target_class_kl", "other_classes_kl"),
  "distillation_token": ("hard_target_cross_entropy", "soft_target_kl"),
  "class_wise": ("soft_target_kl",),
  "collaborative_learning": ("collaborative_kl",),
  "diverse_peers": ("peer_kl",),
  "factor_transfer": ("factor_l1", "factor_lp", "factor_map_lp"),
  "fitnets": ("hint_mse",),
  "flow_of_solution": ("fsp_mse", "fsp_column_norm"),
  "gradient_attention_transfer": ("gradient_l2", "gradient_mse"),
  "gradient_symmetry": ("gradient_l2",),
  "knowledge_review": ("hierarchical_context_mse",),
  "knowledge_distillation": ("soft_target_kl", "soft_target_divergence", "top_k_divergence"),
  "inter_channel_correlation": ("channel_correlation_mse",),
  "masked_generative": ("squared_error_sum",),
  "multi_exit": ("soft_cross_entropy",),
  "multi_level": ("soft_target_kl", "class_correlation", "batch_correlation"),
  "mutual": ("peer_kl",),
  "native_ensemble": ("peer_kl",),
  "neuron_selectivity_transfer": ("polynomial_mmd", "gaussian_mmd", "linear_mmd"),
  "normalized_distillation": ("target_soft_cross_entropy", "other_classes_cross_entropy"),
  "probabilistic_knowledge_transfer": ("cosine_similarity_kl",),
  "progressive_self_distillation": ("past_cross_entropy",),
  "overhaul": ("partial_l2",),
  "one_for_all": ("enhanced_cross_entropy",),
  "relational": ("pairwise_distance_huber", "angle_huber"),
  "scale_decoupled": ("region_divergence",),
  "semantic_calibration": ("weighted_mse",),
  "sigmoid_distillation": ("sigmoid_kl",),
  "similarity_preserving": ("similarity_mse",),
  "simkd": ("hint_mse",),
  "orthogonal_projection": ("normalized_huber", "standardized_huber"),
  "stronger_teacher": ("inter_class_correlation", "intra_class_correlation"),
  "structured": ("pixel_divergence", "pair_wise_mse"),
  "singular_value_distillation": ("aligned_singular_vectors", "hint_mse"),
  "softmax_regression": ("hint_mse", "logit_mse"),
  "variational_information": ("gaussian_log_loss",),
  "vit_distillation": ("squared_error_sum",),
  "transformed_teacher_matching": ("transformed_teacher_kl",),
  "unified_self_distillation": ("self_target_cross_entropy", "ranked_cross_entropy"),
  "virtual_teacher": ("virtual_teacher_kl",),
}


def is_number(value: Any) -> bool:
  """Check whether `value` is a Python or numpy number, not a (traced) JAX array."""
  return isinstance(value, numbers.Real)


def check_positive(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number that is not finite and greater than 0."""
  if is_number(value) and not 0 < value < math.inf:
    raise ConfigError(f"{name} is {value}: it must be a finite number greater than 0")


def check_fraction(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number outside [0, 1]."""
  if is_number(value) and not 0 <= value <= 1:
    raise ConfigError(f"{name} is {value}: it must lie between 0 and 1")


def check_same_shape(
  what: str, student: jax.Array, teacher: jax.Array, hint: str = "", *, other: str = "teacher"
) -> None:
  """Raise a ConfigError with both shapes if they differ; `other` names the second array."""
  if student.shape != teacher.shape:
    message = f"{what}: student {student.shape} and {other} {teacher.shape} differ in shape"
    raise ConfigError(f"{message}; {hint}" if hint else message)


def check_samples(what: str, student: jax.Array, teacher: jax.Array) -> None:
  """Raise a ConfigError unless both are (B, ...), a vector or map per sample, of equal B."""
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim < 2:
      raise ConfigError(f"{what}: {name} {x.shape} is not (B, ...), one vector or map per sample")
  _check_batch_sizes(what, student, teacher)


def check_maps(what: str, student: jax.Array, teacher: jax.Array) -> None:
  """Raise a ConfigError unless both are feature maps (B, H, W, C) of equal batch size."""
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim != 4:
      raise ConfigError(f"{what}: {name} {x.shape} is not a feature map (B, H, W, C)")
  _check_batch_sizes(what, student, teacher)


def check_arrays(what: str, *values: Any) -> None:
  """Raise a ConfigError if an Output, a list of Outputs or None is given as an array."""
  for value in values:
    has_outputs = isinstance(value, (list, tuple)) and any(isinstance(x, Output) for x in value)
    if not (value is None or has_outputs or isinstance(value, Output)):
      continue
    losses = " or ".join(loss for loss, kernels in KERNELS.items() if what in kernels)
    advice = [f"call {losses} for Outputs"] if losses else []
    if isinstance(value, Output):
      advice.append(f"give an array of it, as {_array_of(value)}")
    elif value is None or not advice:
      advice = ["give an array"]
    raise ConfigError(
      f"{what or 'a kernel'} takes arrays, got {_described(value)}: {', or '.join(advice)}"
    )


def check_output(what: str, output: Any, *, role: str, part: str) -> None:
  """Raise a ConfigError that names the kernels for arrays if `output` has no attribute `part`."""
  if hasattr(output, part):
    return
  field = "logits=..." if part == "logits" else f'{part}={{"stage": ...}}'
  kernels = " or ".join(KERNELS.get(what, ()))
  call = f"call {kernels} for arrays, or " if kernels else ""
  advice = f"{call}wrap it as Output({field})"
  if isinstance(output, Sequence) and any(isinstance(x, Output) for x in output):
    advice = "give one of the Outputs it holds"
  elif output is None:
    advice = f"give an Output({field})"
  caller = f"{what} takes Outputs" if what else "a loss takes Outputs"
  raise ConfigError(f"{caller}, got {_described(output)} as the {role}: {advice}")


def check_outputs(what: str, outputs: Any, *, role: str) -> None:
  """Raise a ConfigError unless `outputs` is a list or tuple; its elements are not checked."""
  if isinstance(outputs, Sequence) and not isinstance(outputs, str):
    return
  if isinstance(outputs, Output):
    raise ConfigError(f"{what}: the {role} must be a list of Outputs, got one: write [output]")
  kernels = " or ".join(KERNELS.get(what, ()))
  call = f"; call {kernels} for arrays" if kernels else ""
  raise ConfigError(
    f"{what} takes a list of Outputs, got {_described(outputs)} as the {role}: wrap each as "
    f"Output(logits=...){call}"
  )


def logits_of(output: Output, *, what: str, role: str) -> jax.Array:
  """Return the logits of an Output.

  Raises:
    ConfigError: if `output` is not an Output or has no logits; the message names its `role`.
  """
  check_output(what, output, role=role, part="logits")
  if output.logits is None:
    raise ConfigError(f"{what}: the {role}'s Output has no logits")
  return output.logits


def stage_pairs(stages: Stages) -> list[tuple[str, str]]:
  """Return (student's stage, teacher's stage) for every entry.

  Raises:
    ConfigError: if `stages` is a bare string or empty, or an entry is neither a name nor a pair.

  >>> stage_pairs(["stage1", ("stage2", "stage3")])
  [('stage1', 'stage1'), ('stage2', 'stage3')]
  """
  if isinstance(stages, str):
    raise ConfigError(f"stages is {stages!r}: write ({stages!r},), a sequence of names or pairs")
  if not stages:
    raise ConfigError("stages is empty: name at least one stage to compare")
  pairs = []
  for stage in stages:
    pair = (stage, stage) if isinstance(stage, str) else tuple(stage)
    if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
      raise ConfigError(f"stages has {stage!r}: write a name or a (student, teacher) pair of names")
    pairs.append(pair)
  return pairs


def mask_and_arrays(
  where: ArrayLike | str | None, arrays: Arrays
) -> tuple[ArrayLike | None, Arrays]:
  """Return `where` as a mask, and the name of the arrays to compare.

  Before masks were added, `where` was the name of what `arrays` is now; a string is still read so.

  Raises:
    ConfigError: if `where` is a string that names no arrays.

  >>> mask_and_arrays("preactivations", "features")
  (None, 'preactivations')
  """
  if not isinstance(where, str):
    return where, arrays
  if where not in _ARRAYS:
    raise unknown_name("where", where, _ARRAYS)
  return None, cast(Arrays, where)


def stage_arrays(
  output: Output, stage: str, *, role: str, arrays: Arrays = "features", what: str = ""
) -> jax.Array:
  """Return one stage's array of an Output.

  Args:
    output: Output that holds the stage.
    stage: name of the stage.
    role: "student", "teacher" and so on, for the error.
    arrays: field of the Output.
    what: the loss's name, for the error.

  Raises:
    ConfigError: if `output` is not an Output, naming the kernels of `what` for arrays; if it has
      no such stage, listing those it has.
  """
  if arrays not in _ARRAYS:
    raise unknown_name("arrays", arrays, _ARRAYS)
  check_output(what, output, role=role, part=arrays)
  found = getattr(output, arrays)
  if not found:
    raise ConfigError(f"the {role}'s Output has no {arrays}, so no stage {stage!r}")
  if stage not in found:
    raise unknown_name(f"{role} stage", stage, found)
  return found[stage]


def over_stages(
  kernel: Callable[[jax.Array, jax.Array], jax.Array],
  student: Output,
  teacher: Output,
  stages: Stages,
  *,
  weights: Sequence[ArrayLike] | None = None,
  arrays: Arrays = "features",
  what: str = "",
) -> jax.Array:
  """Sum weight * `kernel(student's array, teacher's array)` over stages.

  Args:
    kernel: function from two arrays to a scalar.
    student: Output.
    teacher: Output.
    stages: names or pairs.
    weights: one per stage; None weights every stage by 1.
    arrays: field of the Outputs that is compared.
    what: the loss's name, for the error.

  Raises:
    ConfigError: for arrays in place of Outputs; if a stage is missing; if there are not as many
      weights as stages; and the kernel's own errors, with the stage put in front.
  """
  pairs = stage_pairs(stages)
  if weights is not None and len(weights) != len(pairs):
    raise ConfigError(f"stage_weights are {len(weights)}, stages {len(pairs)}: give one for each")
  total = jnp.float32(0)
  for i, pair in enumerate(pairs):
    s = stage_arrays(student, pair[0], role="student", arrays=arrays, what=what)
    t = stage_arrays(teacher, pair[1], role="teacher", arrays=arrays, what=what)
    try:
      value = kernel(s, t)
    except ConfigError as error:
      raise ConfigError(f"{stage_label(pair)}: {error}") from error
    total = total + (value if weights is None else weights[i] * value)
  return total


def stage_label(pair: tuple[str, str]) -> str:
  """Return the text that names a pair of stages in an error.

  >>> stage_label(("stage1", "stage1")), stage_label(("stage1", "stage2"))
  ("stage 'stage1'", "stages 'stage1' and 'stage2'")
  """
  student, teacher = pair
  return f"stage {student!r}" if student == teacher else f"stages {student!r} and {teacher!r}"


def _check_batch_sizes(what: str, student: jax.Array, teacher: jax.Array) -> None:
  if student.shape[0] != teacher.shape[0]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in batch size"
    )


def _described(value: Any) -> str:
  """Return a short text for a value in an error: its type, and its shape or length."""
  if value is None:
    return "None"
  if isinstance(value, Output):
    return "an Output"
  if hasattr(value, "shape"):
    return f"an array {tuple(value.shape)}"
  if isinstance(value, (list, tuple, Mapping)):
    return f"a {type(value).__name__} of {len(value)}"
  return f"a {type(value).__name__}"


def _array_of(output: Output) -> str:
  """Return the expression of one array that an Output holds."""
  for part in ("features", "preactivations", "gradients"):
    if output.logits is None and (arrays := getattr(output, part)):
      return f'output.{part}["{next(iter(arrays))}"]'
  return "output.logits"
