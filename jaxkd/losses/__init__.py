"""Distillation losses as pure functions; they import jax and numpy alone.

There are two levels. Kernels, named after the mathematics, take arrays and return a scalar.
Losses, named after the method, take `Output`s and return `Terms`. The student is the first
argument, the teacher the second; the teacher takes no gradient. Options are keyword-only and
default to the authors' values.

| compared | losses | kernels |
|---|---|---|
| labels | | `cross_entropy`, `sigmoid_cross_entropy` |
| logits | `knowledge_distillation`, `sigmoid_distillation` | `soft_target_kl`, `sigmoid_kl` |
| target class | `decoupled_distillation` | `target_class_kl`, `other_classes_kl` |
| regions | `scale_decoupled` | `region_divergence` |
| divergences | | `soft_target_divergence`, `top_k_divergence` |
| correlations | `stronger_teacher` | `inter_class_correlation`, `intra_class_correlation` |
| others | `normalized_distillation` | `target_soft_cross_entropy`, `other_classes_cross_entropy` |
| teacher's power | `transformed_teacher_matching` | `transformed_teacher_kl` |
| virtual teacher | `virtual_teacher` | `virtual_teacher_kl` |
| own ranks | `unified_self_distillation` | `self_target_cross_entropy`, `ranked_cross_entropy` |
| hints | `fitnets`, `simkd` | `hint_mse` |
| attention | `attention_transfer` | `attention_map`, `attention_map_mse`, `attention_map_l2` |
| gradients | `gradient_attention_transfer`, `gradient_symmetry` | `gradient_l2`, `gradient_mse` |
| selectivity | `neuron_selectivity_transfer` | `polynomial_mmd`, `gaussian_mmd`, `linear_mmd` |
| flow | `flow_of_solution` | `flow_matrix`, `fsp_mse`, `fsp_column_norm` |
| factors | `factor_transfer` | `factor_l1`, `factor_lp`, `factor_map_lp`, `reconstruction_error` |
| boundaries | `activation_boundaries` | `boundary_margin`, `boundary_disagreement` |
| relations | `relational` | `pairwise_distance_huber`, `angle_huber` |
| collaboration | `collaborative_learning` | `collaborative_kl` |
| diverse peers | `diverse_peers` | `peer_kl` |
| pairs of one class | `class_wise` | `soft_target_kl` |
| own past predictions | `progressive_self_distillation` | `past_cross_entropy` |
| similarities | `similarity_preserving` | `similarity_mse` |
| correlations | `correlation_congruence` | `kernel_correlation`, `adjacent_products` |
| channels | `inter_channel_correlation` | `channel_correlation_mse` |
| information | `variational_information` | `gaussian_log_loss` |
| softmax regression | `softmax_regression` | `logit_mse` |
| singular vectors | `singular_value_distillation` | `aligned_singular_vectors` |
| distributions | `probabilistic_knowledge_transfer` | `cosine_similarity_kl` |
| dense outputs | `channel_wise` | `channel_divergence` |
| masked features | `masked_generative` | `squared_error_sum` |
| class maps | `class_attention` | `class_activation_mse` |
| distillation token | `distillation_token` | `hard_target_cross_entropy` |
| tokens | `vit_distillation` | `squared_error_sum` |
| projections | `orthogonal_projection` | `normalized_huber`, `standardized_huber` |
| pixels and regions | `structured` | `pixel_divergence`, `pair_wise_mse` |
| reviews | `knowledge_review` | `hierarchical_context_mse` |
| contrasts | `contrastive_representation` | `contrastive_nce` |
| margins | `overhaul` | `partial_l2`, `batch_norm_margin` |
| layers | `semantic_calibration` | `weighted_mse` |
| peers | `mutual`, `native_ensemble` | `peer_kl`, `gated_logits` |
| exits | `multi_exit` | `soft_cross_entropy`, `mean_confidence`, `adapted_temperature` |
| own teacher | `be_your_own_teacher` | `masked_sum_of_squares`, `euclidean_distance` |
| confidence | `confidence_weighted_by_teacher_max` | `confidence_weighted_cross_entropy` |
| learned temperature | `curriculum_temperature` | `temperature_kl` |
| levels | `multi_level` | `class_correlation`, `batch_correlation` |
| enhanced target | `one_for_all` | `enhanced_cross_entropy` |
| permuted logits | `dark_knowledge_permuted` | `permuted_soft_target_kl`, `permute_wrong_classes` |

`adaptive_average_pool`, `adaptive_max_pool` and `match_sizes` resize feature maps.
"""

from jaxkd.losses._resize import adaptive_average_pool, adaptive_max_pool, match_sizes
from jaxkd.losses.ab import activation_boundaries, boundary_disagreement, boundary_margin
from jaxkd.losses.at import attention_map, attention_map_l2, attention_map_mse, attention_transfer
from jaxkd.losses.born_again import (
  confidence_weighted_by_teacher_max,
  confidence_weighted_cross_entropy,
  dark_knowledge_permuted,
  permute_wrong_classes,
  permuted_soft_target_kl,
)
from jaxkd.losses.byot import be_your_own_teacher, euclidean_distance, masked_sum_of_squares
from jaxkd.losses.catkd import class_activation_mse, class_attention
from jaxkd.losses.cc import adjacent_products, correlation_congruence, kernel_correlation
from jaxkd.losses.crd import contrastive_nce, contrastive_representation
from jaxkd.losses.cross_entropy import cross_entropy
from jaxkd.losses.cskd import class_wise
from jaxkd.losses.ctkd import curriculum_temperature, temperature_kl
from jaxkd.losses.cwd import channel_divergence, channel_wise
from jaxkd.losses.deit import distillation_token, hard_target_cross_entropy
from jaxkd.losses.dist import (
  inter_class_correlation,
  intra_class_correlation,
  stronger_teacher,
)
from jaxkd.losses.divergences import soft_target_divergence, top_k_divergence
from jaxkd.losses.dkd import decoupled_distillation, other_classes_kl, target_class_kl
from jaxkd.losses.dml import gated_logits, mutual, native_ensemble, peer_kl
from jaxkd.losses.fitnets import fitnets, hint_mse, simkd
from jaxkd.losses.fsp import flow_matrix, flow_of_solution, fsp_column_norm, fsp_mse
from jaxkd.losses.ft import (
  factor_l1,
  factor_lp,
  factor_map_lp,
  factor_transfer,
  reconstruction_error,
)
from jaxkd.losses.gradient_at import (
  gradient_attention_transfer,
  gradient_l2,
  gradient_mse,
  gradient_symmetry,
)
from jaxkd.losses.ickd import channel_correlation_mse, inter_channel_correlation
from jaxkd.losses.kd import knowledge_distillation, soft_target_kl
from jaxkd.losses.kdcl import collaborative_kl, collaborative_learning
from jaxkd.losses.kdsvd import aligned_singular_vectors, singular_value_distillation
from jaxkd.losses.mgd import masked_generative, squared_error_sum
from jaxkd.losses.mlkd import batch_correlation, class_correlation, multi_level
from jaxkd.losses.multi_exit import (
  adapted_temperature,
  mean_confidence,
  multi_exit,
  soft_cross_entropy,
)
from jaxkd.losses.multi_label import sigmoid_cross_entropy, sigmoid_distillation, sigmoid_kl
from jaxkd.losses.nkd import (
  normalized_distillation,
  other_classes_cross_entropy,
  target_soft_cross_entropy,
)
from jaxkd.losses.nst import gaussian_mmd, linear_mmd, neuron_selectivity_transfer, polynomial_mmd
from jaxkd.losses.ofa import enhanced_cross_entropy, one_for_all
from jaxkd.losses.ofd import batch_norm_margin, overhaul, partial_l2
from jaxkd.losses.okddip import diverse_peers
from jaxkd.losses.pkt import cosine_similarity_kl, probabilistic_knowledge_transfer
from jaxkd.losses.pskd import past_cross_entropy, progressive_self_distillation
from jaxkd.losses.reviewkd import hierarchical_context_mse, knowledge_review
from jaxkd.losses.rkd import angle_huber, pairwise_distance_huber, relational
from jaxkd.losses.sdd import region_divergence, scale_decoupled
from jaxkd.losses.semckd import semantic_calibration, weighted_mse
from jaxkd.losses.skd import pair_wise_mse, pixel_divergence, structured
from jaxkd.losses.sp import similarity_mse, similarity_preserving
from jaxkd.losses.srrl import logit_mse, softmax_regression
from jaxkd.losses.tfkd import virtual_teacher, virtual_teacher_kl
from jaxkd.losses.ttm import transformed_teacher_kl, transformed_teacher_matching
from jaxkd.losses.uskd import (
  ranked_cross_entropy,
  self_target_cross_entropy,
  unified_self_distillation,
)
from jaxkd.losses.vid import gaussian_log_loss, variational_information
from jaxkd.losses.vitkd import vit_distillation
from jaxkd.losses.vkd import normalized_huber, orthogonal_projection, standardized_huber

__all__ = [
  "activation_boundaries",
  "adapted_temperature",
  "adaptive_average_pool",
  "adaptive_max_pool",
  "adjacent_products",
  "aligned_singular_vectors",
  "angle_huber",
  "attention_map",
  "attention_map_l2",
  "attention_map_mse",
  "attention_transfer",
  "batch_correlation",
  "batch_norm_margin",
  "be_your_own_teacher",
  "boundary_disagreement",
  "boundary_margin",
  "channel_correlation_mse",
  "channel_divergence",
  "channel_wise",
  "class_activation_mse",
  "class_attention",
  "class_correlation",
  "class_wise",
  "collaborative_kl",
  "collaborative_learning",
  "confidence_weighted_by_teacher_max",
  "confidence_weighted_cross_entropy",
  "contrastive_nce",
  "contrastive_representation",
  "correlation_congruence",
  "cosine_similarity_kl",
  "cross_entropy",
  "curriculum_temperature",
  "dark_knowledge_permuted",
  "decoupled_distillation",
  "distillation_token",
  "diverse_peers",
  "enhanced_cross_entropy",
  "euclidean_distance",
  "factor_l1",
  "factor_lp",
  "factor_map_lp",
  "factor_transfer",
  "fitnets",
  "flow_matrix",
  "flow_of_solution",
  "fsp_column_norm",
  "fsp_mse",
  "gated_logits",
  "gaussian_log_loss",
  "gaussian_mmd",
  "gradient_attention_transfer",
  "gradient_l2",
  "gradient_mse",
  "gradient_symmetry",
  "hard_target_cross_entropy",
  "hierarchical_context_mse",
  "hint_mse",
  "inter_channel_correlation",
  "inter_class_correlation",
  "intra_class_correlation",
  "kernel_correlation",
  "knowledge_distillation",
  "knowledge_review",
  "linear_mmd",
  "logit_mse",
  "masked_generative",
  "masked_sum_of_squares",
  "match_sizes",
  "mean_confidence",
  "multi_exit",
  "multi_level",
  "mutual",
  "native_ensemble",
  "neuron_selectivity_transfer",
  "normalized_distillation",
  "normalized_huber",
  "one_for_all",
  "orthogonal_projection",
  "other_classes_cross_entropy",
  "other_classes_kl",
  "overhaul",
  "pair_wise_mse",
  "pairwise_distance_huber",
  "partial_l2",
  "past_cross_entropy",
  "peer_kl",
  "permute_wrong_classes",
  "permuted_soft_target_kl",
  "pixel_divergence",
  "polynomial_mmd",
  "probabilistic_knowledge_transfer",
  "progressive_self_distillation",
  "ranked_cross_entropy",
  "reconstruction_error",
  "region_divergence",
  "relational",
  "scale_decoupled",
  "self_target_cross_entropy",
  "semantic_calibration",
  "sigmoid_cross_entropy",
  "sigmoid_distillation",
  "sigmoid_kl",
  "similarity_mse",
  "similarity_preserving",
  "simkd",
  "singular_value_distillation",
  "soft_cross_entropy",
  "soft_target_divergence",
  "soft_target_kl",
  "softmax_regression",
  "squared_error_sum",
  "standardized_huber",
  "stronger_teacher",
  "structured",
  "target_class_kl",
  "target_soft_cross_entropy",
  "temperature_kl",
  "top_k_divergence",
  "transformed_teacher_kl",
  "transformed_teacher_matching",
  "unified_self_distillation",
  "variational_information",
  "virtual_teacher",
  "virtual_teacher_kl",
  "vit_distillation",
  "weighted_mse",
]
