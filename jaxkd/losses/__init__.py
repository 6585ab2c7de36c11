"""What is matched between student and teacher, as pure functions; needs jax and numpy alone.

Two levels. Kernels take arrays and give a scalar, named after the mathematics. Losses take
`Output`s and give `Terms`, named after the method. The student comes first, the teacher second
and takes no gradient; all else is keyword-only, with the authors' defaults.

| what is matched | losses | kernels |
|---|---|---|
| labels | | `cross_entropy` |
| logits | `knowledge_distillation` | `soft_target_kl` |
| hints | `fitnets`, `simkd` | `hint_mse` |
| attention | `attention_transfer` | `attention_map`, `attention_map_mse`, `attention_map_l2` |

`adaptive_average_pool` and `match_sizes` bring feature maps to one size.
"""

from jaxkd.losses.attention import (
  attention_map,
  attention_map_l2,
  attention_map_mse,
  attention_transfer,
)
from jaxkd.losses.hints import fitnets, hint_mse, simkd
from jaxkd.losses.logits import knowledge_distillation, soft_target_kl
from jaxkd.losses.spatial import adaptive_average_pool, match_sizes
from jaxkd.losses.supervised import cross_entropy

__all__ = [
  "adaptive_average_pool",
  "attention_map",
  "attention_map_l2",
  "attention_map_mse",
  "attention_transfer",
  "cross_entropy",
  "fitnets",
  "hint_mse",
  "knowledge_distillation",
  "match_sizes",
  "simkd",
  "soft_target_kl",
]
