"""Golden cases of NetAug: a small inverted-residual network, alone and as a part of a wider one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxkd import losses
from jaxkd.models.compose.channels import (
  first_channels,
  masked_channels,
  most_important_first,
  reorder,
)
from jaxkd.models.layers import convolution
from jaxkd.train import make_optimizer
from tests.golden_cases import Arrays, Case

Widths = Mapping[str, int]
INNER = ("expand_kernel", "expand_bn", "dw_kernel", "dw_bn")


class Net(nn.Module):
  """The network of the cases, with ReLU6 as in the paper.

  Attributes:
    widths: channels: stem, stem_pw, head_conv, and NAME_mid and NAME_out of every block.
    blocks: names of the blocks; the first has stride 2, the last one is the head's.
    momentum: of the running statistics.
    eps: of batch normalisation.
  """

  widths: Any
  blocks: tuple[str, ...]
  classes: int
  momentum: float
  eps: float

  def layer(self, name, x, width, size, stride=1, *, depthwise=False, active=True):
    groups = x.shape[-1] if depthwise else 1
    x = convolution(width, size, None, stride, f"{name}_kernel", groups=groups)(x)
    norm = nn.BatchNorm(False, momentum=1 - self.momentum, epsilon=self.eps, name=f"{name}_bn")
    x = norm(x)
    return jax.nn.relu6(x) if active else x

  @nn.compact
  def __call__(self, x):
    widths = dict(self.widths)
    x = self.layer("stem", x, widths["stem"], 3, 2)
    x = self.layer("stem_dw", x, widths["stem"], 3, depthwise=True)
    x = self.layer("stem_pw", x, widths["stem_pw"], 1, active=False)
    for i, name in enumerate(self.blocks):
      inner, stride = widths[f"{name}_mid"], 2 if i == 0 and name != "head_block" else 1
      y = self.layer(f"{name}_expand", x, inner, 1)
      y = self.layer(f"{name}_dw", y, inner, 3, stride, depthwise=True)
      y = self.layer(f"{name}_project", y, widths[f"{name}_out"], 1, active=False)
      x = x + y if i > 0 and name != "head_block" else y
    x = self.layer("head_conv", x, widths["head_conv"], 1)
    return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


def netaug(case: Case, arrays: Arrays) -> tuple[jax.Array, dict[str, Any]]:
  count = int(case.number("n_blocks", 1))
  blocks = (*(f"block_{i}" for i in range(count)), "head_block")
  params = jax.tree.map(jnp.asarray, _params(arrays))
  aux: dict[str, Any] = {}
  if case.number("sort_channels", 0):
    params = _sorted(params, blocks)
    aux |= {f"aux_sorted_{name}": value for name, value in _named(params).items()}
  active = {name: int(case.number(f"active_{name}", 0)) for name in _width_names(blocks)}
  base = {name: int(case.number(f"aux_base_active_{name}", 0)) for name in _width_names(blocks)}
  if not base["stem"]:
    base = _base_widths(case, blocks)
  aux |= {f"aux_base_active_{name}": value for name, value in base.items()}

  def objective(params: Any, images: Any) -> tuple[jax.Array, Any]:
    return _objective(case, arrays["labels"], blocks, (base, active), params, images)

  (total, found), gradients = jax.value_and_grad(objective, has_aux=True)(params, arrays["images"])
  aux |= found
  if case.number("sort_channels", 0):
    aux |= {f"aux_grad_sorted_{name}": value for name, value in _named(gradients).items()}
  steps = int(case.number("n_sgd_steps", 0))
  if steps:
    after, each = _steps(case, steps, lambda p: objective(p, arrays["images"]), params)
    aux |= {f"aux_after_sgd_{name}": value for name, value in _named(after).items()}
    aux["aux_step_losses"] = each
  return total, aux


def _objective(
  case: Case, labels: Any, blocks: Any, widths: tuple[Widths, Widths], params: Any, images: Any
) -> tuple[jax.Array, dict[str, Any]]:
  full = _full_widths(params, blocks)
  options = (blocks, int(case.number("n_classes", 5)))
  options += (case.number("bn_momentum", 0.1), case.number("bn_eps", 1e-5))
  nets = [Net(tuple(each.items()), *options) for each in (widths[0], full)]
  base, wide = nets
  batch = jnp.asarray(images)[:1]
  shapes = jax.eval_shape(base.init, jax.random.key(0), batch)
  begun = jax.eval_shape(wide.init, jax.random.key(0), batch)["batch_stats"]
  stats = {
    layer: {
      "mean": jnp.zeros(x["mean"].shape, batch.dtype),
      "var": jnp.ones_like(x["mean"], dtype=batch.dtype),
    }
    for layer, x in begun.items()
  }
  own = first_channels({"params": params, "batch_stats": stats}, shapes)
  logits, changes = base.apply(own, images, mutable=["batch_stats"])
  after_base = _unbiased(case, "stem_bn", stats, changes["batch_stats"], images)
  with masked_channels(_counts(widths[1], blocks)):
    augmented, changes = wide.apply(
      {"params": params, "batch_stats": {**stats, "stem_bn": after_base}},
      images,
      mutable=["batch_stats"],
    )
  cut = {
    "stem_bn": {k: v[: widths[1]["stem"]] for k, v in changes["batch_stats"]["stem_bn"].items()}
  }
  after = _unbiased(case, "stem_bn", {"stem_bn": after_base}, cut, images)
  smoothing = case.number("label_smoothing", 0.0)
  each = [losses.cross_entropy(z, labels, label_smoothing=smoothing) for z in (logits, augmented)]
  aux = {
    "aux_loss_base": each[0],
    "aux_loss_aug": each[1],
    "aux_logits_base": logits,
    "aux_logits_aug": augmented,
  }
  for when, found in (("base", after_base), ("aug", after)):
    aux |= {f"aux_stem_bn_{kind}_after_{when}": found[kind] for kind in ("mean", "var")}
  return each[0] + case.number("aug_weight", 1.0) * each[1], aux


def _unbiased(case: Case, layer: str, before: Any, after: Any, images: Any) -> dict[str, Any]:
  """Statistics with torch's running variance, which is unbiased, in their first channels."""
  momentum = case.number("bn_momentum", 0.1)
  rows, columns = (-(-n // 2) for n in images.shape[1:3])
  n = images.shape[0] * rows * columns
  old, new = before[layer], after[layer]
  k = len(new["mean"])
  biased = (new["var"] - (1 - momentum) * old["var"][:k]) / momentum
  var = (1 - momentum) * old["var"][:k] + momentum * biased * n / (n - 1)
  return {"mean": old["mean"].at[:k].set(new["mean"]), "var": old["var"].at[:k].set(var)}


def _steps(case: Case, count: int, objective: Any, params: Any) -> tuple[Any, jax.Array]:
  """Updates by SGD, whose weight decay is of kernels alone."""
  sgd = make_optimizer(
    "sgd",
    optax.constant_schedule(case.number("lr", 0.1)),
    momentum=case.number("momentum", 0.0),
    nesterov=bool(case.number("nesterov", 0)),
  )
  decay = case.number("weight_decay", 0.0)
  state, each = sgd.init(params), []
  for _ in range(count):
    (_, aux), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    each.append(jnp.stack([aux["aux_loss_base"], aux["aux_loss_aug"]]))
    gradients = jax.tree.map_with_path(
      lambda path, g, w: g + decay * w if path[-1].key == "kernel" else g, gradients, params
    )
    updates, state = sgd.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params, jnp.stack(each)


def _params(arrays: Arrays) -> dict[str, Any]:
  """Parameters of the wide network, under the names of `Net`'s layers."""
  found = {}
  for name, value in arrays.items():
    if name.startswith(("grad_", "aux_")):
      continue
    if match := re.fullmatch(r"(.*_bn)_(scale|bias)", name):
      found[match[1], match[2]] = value
    elif match := re.fullmatch(r"fc_(kernel|bias)", name):
      found["fc", match[1]] = value
    elif name.endswith("_kernel"):
      found[name, "kernel"] = value
  return unflatten_dict(found)


def _named(params: Any) -> dict[str, Any]:
  """The opposite of `_params`."""
  return {
    layer if layer.endswith("_kernel") else f"{layer}_{kind}": value
    for layer, kinds in params.items()
    for kind, value in kinds.items()
  }


def _sorted(params: Any, blocks: Any) -> dict[str, Any]:
  """Parameters with the inner channels of every block by falling importance."""
  for name in blocks:
    last = f"{name}_project_kernel"
    order = most_important_first(params[last]["kernel"])
    params = reorder(params, order, [f"{name}_{layer}" for layer in INNER], last)
  return params


def _width_names(blocks: Any) -> list[str]:
  of_blocks = [f"{name}_{kind}" for name in blocks for kind in ("mid", "out")]
  return ["stem", "stem_pw", *of_blocks, "head_conv"]


def _full_widths(params: Any, blocks: Any) -> dict[str, int]:
  full = {
    name: params[f"{name}_kernel"]["kernel"].shape[-1] for name in ("stem", "stem_pw", "head_conv")
  }
  for name in blocks:
    for kind, layer in (("mid", "expand"), ("out", "project")):
      full[f"{name}_{kind}"] = params[f"{name}_{layer}_kernel"]["kernel"].shape[-1]
  return full


def _base_widths(case: Case, blocks: Any) -> dict[str, int]:
  """The base network's channels from its hyperparameters."""
  found = {name: int(case.number(f"base_{name}", 0)) for name in ("stem", "stem_pw", "head_conv")}
  before = found["stem_pw"]
  for name in blocks:
    found[f"{name}_mid"] = int(before * case.number("base_expand", 1.0) + 0.5)
    before = int(case.number("base_head_block" if name == "head_block" else "base_stage", 0))
    found[f"{name}_out"] = before
  return found


def _counts(active: Widths, blocks: Any) -> dict[str, int]:
  """Channels of every batch normalisation of `Net`."""
  counts = {"stem_bn": active["stem"], "stem_dw_bn": active["stem"]}
  counts |= {f"{name}_bn": active[name] for name in ("stem_pw", "head_conv")}
  for name in blocks:
    inner, after = active[f"{name}_mid"], active[f"{name}_out"]
    counts |= {f"{name}_expand_bn": inner, f"{name}_dw_bn": inner, f"{name}_project_bn": after}
  return counts
