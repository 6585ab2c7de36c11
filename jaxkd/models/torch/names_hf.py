"""Module names in the PyTorch code of Hugging Face's transformers, and the paths of ours."""

from __future__ import annotations

from jaxkd.models.staged import TorchNames
from jaxkd.models.torch.names_timm import in_block

_LAYER = r"(?:vit|deit)\.(?:encoder\.layer|layers)\.(\d+)\."

# The names of published files, and those of the modules of transformers 5 in memory.
HF_VIT_NAMES: TorchNames = (
  (r"(?:vit|deit)\.embeddings\.cls_token", "embedding/cls_token"),
  (r"(?:vit|deit)\.embeddings\.distillation_token", "embedding/dist_token"),
  (r"(?:vit|deit)\.embeddings\.position_embeddings", "embedding/pos_embed"),
  (r"(?:vit|deit)\.embeddings\.patch_embeddings\.projection", "embedding/patches"),
  (rf"{_LAYER}layernorm_before", in_block("attention_norm")),
  (rf"{_LAYER}attention\.attention\.(query|key|value)", in_block(r"attention/\2")),
  (rf"{_LAYER}attention\.output\.dense", in_block("attention/out")),
  (rf"{_LAYER}layernorm_after", in_block("mlp_norm")),
  (rf"{_LAYER}intermediate\.dense", in_block("mlp_in")),
  (rf"{_LAYER}output\.dense", in_block("mlp_out")),
  (r"(?:vit|deit)\.layernorm", "final_norm"),
  (r"classifier|cls_classifier", "classifier"),
  (r"distillation_classifier", "distillation_classifier"),
)
