"""The table of every loss on Outputs: `SUBJECTS`, for tests of what all of them must do.

The rows of a method that has a file in tests/rows are there.
"""

from __future__ import annotations

import jax

from jaxkd import losses
from jaxkd.types import Output
from tests import rows
from tests.rows._subject import (
  B,
  Subject,
  of_confidence,
  of_exits,
  of_flows,
  of_gradients,
  of_labels,
  of_logits,
  of_maps,
  of_tokens,
)

WEIGHTED = {"class_weights": (0.5, 2.0, 1.0, 0.25, 3.0), "label_smoothing": 0.1}
SUBJECTS = {
  "cross_entropy": Subject(of_labels(), (B, 5), (B, 5)),
  "cross_entropy_weighted": Subject(
    of_labels(**WEIGHTED), (B, 5), (B, 5), mapped=of_labels(**WEIGHTED, axis_name="batch")
  ),
  "knowledge_distillation": Subject(of_logits(losses.knowledge_distillation), (B, 5), (B, 5)),
  "sigmoid_cross_entropy": Subject(
    lambda s, t, **where: losses.sigmoid_cross_entropy(s, jax.lax.stop_gradient(t > 0), **where),
    (B, 5),
    (B, 5),
  ),
  "sigmoid_distillation": Subject(of_logits(losses.sigmoid_distillation), (B, 5), (B, 5)),
  "fitnets": Subject(of_maps(losses.fitnets), (B, 2, 2, 3), (B, 3, 3, 3)),
  "fitnets_tokens": Subject(of_tokens(losses.fitnets), (B, 4, 3), (B, 4, 3)),
  "simkd": Subject(of_maps(losses.simkd), (B, 4, 4, 3), (B, 2, 2, 3)),
  "attention_transfer": Subject(
    of_maps(losses.attention_transfer, power=4), (B, 3, 3, 3), (B, 2, 2, 4)
  ),
  "attention_transfer_paper": Subject(
    of_maps(losses.attention_transfer, norm="paper"), (B, 2, 3, 3), (B, 2, 3, 4)
  ),
  "neuron_selectivity_transfer": Subject(
    of_maps(losses.neuron_selectivity_transfer), (B, 1, 2, 3), (B, 1, 2, 4)
  ),
  "neuron_selectivity_transfer_gaussian": Subject(
    of_maps(losses.neuron_selectivity_transfer, kernel="gaussian", variance=0.5),
    (B, 2, 3, 3),
    (B, 2, 3, 4),
  ),
  "flow_of_solution": Subject(of_flows(pool="max", norm="columns"), (B, 4, 2, 3), (B, 2, 2, 3)),
  "factor_transfer": Subject(of_maps(losses.factor_transfer), (B, 2, 2, 3), (B, 3, 3, 3)),
  "factor_transfer_maps": Subject(
    of_maps(losses.factor_transfer, normalization="repdistiller", order=1.5),
    (B, 3, 3, 3),
    (B, 2, 2, 4),
  ),
  "activation_boundaries": Subject(
    of_maps(losses.activation_boundaries, arrays="features"), (B, 2, 2, 3), (B, 2, 2, 3)
  ),
  "activation_boundaries_tokens": Subject(
    of_tokens(losses.activation_boundaries, arrays="features"), (B, 4, 3), (B, 4, 3)
  ),
  "gradient_attention_transfer": Subject(
    of_gradients(losses.gradient_attention_transfer), (B, 2, 3, 3), (B, 2, 3, 3)
  ),
  "gradient_attention_transfer_mse": Subject(
    of_gradients(losses.gradient_attention_transfer, norm="mse", normalize=True, reduce="abs_mean"),
    (B, 3, 3, 3),
    (B, 2, 2, 4),
  ),
  "gradient_symmetry": Subject(
    # No teacher: both sides take a gradient.
    lambda s, t, **where: (
      losses.gradient_symmetry(
        Output(gradients={"images": s[:, :2], "flipped_images": s[:, 2:]}), **where
      ).total
    ),
    (B, 4, 3, 2),
    (B, 4, 3, 2),
  ),
  "relational": Subject(
    of_maps(losses.relational),
    (B, 1, 2, 2),
    (B, 3),
    mapped=of_maps(losses.relational, axis_name="batch"),
  ),
  "relational_tokens": Subject(
    of_tokens(losses.relational),
    (B, 4, 2),
    (B, 4, 3),
    mapped=of_tokens(losses.relational, axis_name="batch"),
  ),
  "mutual": Subject(
    lambda s, t, **where: losses.mutual(Output(s), [Output(t), Output(-t)], **where).total,
    (B, 5),
    (B, 5),
  ),
  "native_ensemble": Subject(
    lambda s, t, **where: (
      losses.native_ensemble([Output(s[:, :3]), Output(s[:, 3:])], Output(t), **where).total
    ),
    (B, 6),
    (B, 3),
    # XLA's log_softmax of logits / T sums to 1 up to the last bit. A smoothed target depends on
    # that sum, so this rounding error remains where both agree.
    rounding=1e-6,
  ),
  "multi_exit": Subject(of_exits(losses.multi_exit), (B, 10), (B, 5)),
  "be_your_own_teacher": Subject(
    of_exits(losses.be_your_own_teacher, feature_weight=0.1),
    (B, 10),
    (B, 5),
    mapped=of_exits(losses.be_your_own_teacher, feature_weight=0.1, axis_name="batch"),
  ),
  "confidence_weighted_by_teacher_max": Subject(
    of_confidence(), (B, 5), (B, 5), mapped=of_confidence(axis_name="batch")
  ),
  "dark_knowledge_permuted": Subject(
    # With two classes the permutation is trivial, so the result does not depend on the order of
    # the examples or on their devices.
    lambda s, t, **where: (
      losses.dark_knowledge_permuted(
        Output(s), Output(t), jax.random.key(0), temperature=2.0, **where
      ).total
    ),
    (B, 2),
    (B, 2),
  ),
}
SUBJECTS.update(rows.merged("SUBJECTS"))
