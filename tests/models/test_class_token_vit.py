"""Heads and positions of the class-token transformer, and weights that are not for it."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxkd.errors import ConfigError
from jaxkd.models import ClassTokenTransformer, create, from_torch, published_preprocessing
from tests.models.drawn import drawn

HF = {"norm_eps": 1e-12, "library": "transformers"}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
PLAIN = ClassTokenTransformer(4, 8, 2, 4, 3, **HF)
DISTILLED = ClassTokenTransformer(4, 8, 2, 4, 3, 1e-12, True, True, "transformers")


def state_of(model, variables):
  """The state dict of transformers for variables, by hand."""
  kind = "deit" if model.distillation_token else "vit"
  parts = {
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "attention/out": "attention.output.dense",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
  } | {f"attention/{x}": f"attention.attention.{x}" for x in ("query", "key", "value")}
  names = {
    "embedding/patches": f"{kind}.embeddings.patch_embeddings.projection",
    "final_norm": f"{kind}.layernorm",
    "classifier": "cls_classifier" if model.distillation_head else "classifier",
    "distillation_classifier": "distillation_classifier",
  }
  for i in range(4):
    layer = f"{kind}.encoder.layer.{i}"
    names |= {f"block_{i + 1}/{ours}": f"{layer}.{part}" for ours, part in parts.items()}
  tokens = {"pos_embed": "position_embeddings", "dist_token": "distillation_token"}
  state = {}
  for path, value in flatten_dict(variables["params"], sep="/").items():
    module, leaf = path.rsplit("/", 1)
    if module == "embedding":
      state[f"{kind}.embeddings.{tokens.get(leaf, leaf)}"] = value
    else:
      theirs = "bias" if leaf == "bias" else "weight"
      turned = np.moveaxis(value, (-2, -1), (1, 0)) if leaf == "kernel" else value
      state[f"{names[module]}.{theirs}"] = np.ascontiguousarray(turned)
  return state


@pytest.fixture(scope="module")
def distilled():
  return drawn(DISTILLED, IMAGES)


def test_logits_are_the_mean_of_both_heads_which_are_exposed(distilled):
  output = DISTILLED.apply(distilled, IMAGES)
  heads = [output.features[name] for name in ("logits_cls", "logits_dist")]
  assert not np.allclose(*heads)
  np.testing.assert_allclose(output.logits, sum(heads) / 2, rtol=1e-5, atol=1e-6)
  params = distilled["params"]["distillation_classifier"]
  dist = output.features["norm"][:, 1] @ params["kernel"] + params["bias"][None]
  np.testing.assert_allclose(heads[1], dist, rtol=1e-5, atol=1e-5)
  patches = output.features["block4"][:, 2:].reshape(2, 2, 2, 8)
  np.testing.assert_array_equal(output.features["stage4"], patches)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"heads": 3}, "width=8: expected a multiple of the 3 heads"),
    ({"depth": 6}, "depth=6: expected a multiple of 4"),
    ({"distillation_head": True}, "expected distillation_token=True as well"),
    ({"library": "keras"}, "library='keras': expected one of timm, transformers"),
  ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    PLAIN.clone(**fields)


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((1, 8, 12, 3), "images of 8x12: this model takes square images"),
    ((1, 10, 10, 3), "whose sides are multiples of 4"),
    ((1, 12, 12, 3), "11 tokens, and these weights have positions for 6: expected images of 8x8"),
  ],
)
def test_images_of_another_size_are_refused(distilled, shape, message):
  with pytest.raises(ConfigError, match=message):
    DISTILLED.apply(distilled, jnp.zeros(shape))


def test_weights_of_another_image_size_say_what_to_pass(distilled):
  with pytest.raises(ConfigError, match=r"image_shape=\(12, 12, 3\): pass that of the weights"):
    from_torch(state_of(DISTILLED, distilled), DISTILLED, image_shape=(12, 12, 3))


def test_weights_without_a_distillation_head_or_of_another_size_or_family_are_refused(distilled):
  state = state_of(DISTILLED, distilled)
  lacking = {name: value for name, value in state.items() if "distillation_cl" not in name}
  with pytest.raises(ConfigError, match=r"2 missing \(params/distillation_classifier/"):
    from_torch(lacking, DISTILLED, image_shape=(8, 8, 3))
  with pytest.raises(ConfigError, match="unknown"):
    from_torch(state, PLAIN, image_shape=(8, 8, 3))
  with pytest.raises(ConfigError, match="of another shape"):
    from_torch(state, DISTILLED.clone(width=16), image_shape=(8, 8, 3))
  with pytest.raises(ConfigError, match="unknown"):
    from_torch(state, create("timm_resnet18", num_classes=3), image_shape=(32, 32, 3))


def config_of(model):
  return {"num_attention_heads": model.heads, "hidden_size": model.width, "layer_norm_eps": 1e-12}


@pytest.mark.parametrize("parts", [1, 2])
def test_directories_of_transformers_are_read(tmp_path, distilled, parts):
  state = state_of(DISTILLED, distilled)
  (tmp_path / "config.json").write_text(json.dumps(config_of(DISTILLED)))
  if parts == 1:
    save_file(state, tmp_path / "model.safetensors")
  else:
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
      save_file({n: x for n, x in state.items() if files[n] == file}, tmp_path / file)
    index = json.dumps({"weight_map": files})
    (tmp_path / "model.safetensors.index.json").write_text(index)
  found = from_torch(tmp_path, DISTILLED, image_shape=(8, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, found, distilled)
  if parts == 2:
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-1.safetensors: no such file"):
      from_torch(tmp_path, DISTILLED, image_shape=(8, 8, 3))


def test_a_directory_without_weights_or_of_another_config_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"a directory without weights: expected model"):
    from_torch(tmp_path, PLAIN, image_shape=(8, 8, 3))
  (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
  with pytest.raises(ConfigError, match="num_attention_heads is 4, expected 2 for this model"):
    from_torch(tmp_path, PLAIN, image_shape=(8, 8, 3))
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ConfigError, match="damaged"):
    from_torch(tmp_path, PLAIN, image_shape=(8, 8, 3))


def test_blocks_are_counted_from_one():
  assert create("timm_vit_tiny_patch16_224", num_classes=3).stages[1] == "block1"


def test_teachers_see_images_as_their_library_trained_them():
  for name, mean in (("timm_vit_base_patch16_224", 0.5), ("hf_vit_tiny", 0.5)):
    assert published_preprocessing(name).mean == (mean,) * 3
  for name in ("timm_deit_tiny_distilled_patch16_224", "timm_convnext_pico", "hf_deit_small"):
    assert published_preprocessing(name) == published_preprocessing("imagenet_resnet18")
