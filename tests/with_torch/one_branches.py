"""ONE's branched network in PyTorch, as tests/golden/models/README.md describes it.

`main` writes its outputs in the format of those files: values of the published network itself are
not available.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.torch_weights import digest, regenerate
from tests.with_torch.train_teacher import Block

SPECS = Path(__file__).parents[1] / "golden" / "models" / "specs.json"
SEED = 77
BRANCHES = (1, 2, 3)


class OneResNet(nn.Module):
  """A trunk up to layer2, three copies of layer3 and the classifier, and a gate."""

  def __init__(self, depth: int, num_classes: int):
    super().__init__()

    def layer(before: int, width: int, stride: int) -> nn.Sequential:
      later = (Block(width, width, 1) for _ in range((depth - 2) // 6 - 1))
      return nn.Sequential(Block(before, width, stride), *later)

    self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(16)
    self.layer1 = layer(16, 16, 1)
    self.layer2 = layer(16, 32, 2)
    for k in BRANCHES:
      setattr(self, f"layer3_{k}", layer(32, 64, 2))
    self.control_v1 = nn.Linear(32, 3)
    self.bn_v1 = nn.BatchNorm1d(3)
    for k in BRANCHES:
      setattr(self, f"classfier3_{k}", nn.Linear(64, num_classes))

  def forward(self, x):
    f1 = self.layer1(F.relu(self.bn1(self.conv1(x))))
    f2 = self.layer2(f1)
    last = {k: getattr(self, f"layer3_{k}")(f2) for k in BRANCHES}
    logits = torch.stack([getattr(self, f"classfier3_{k}")(last[k].mean((2, 3))) for k in BRANCHES])
    gate = F.softmax(F.relu(self.bn_v1(self.control_v1(f2.mean((2, 3))))), dim=1)
    together = (gate.T[:, :, None] * logits).sum(0)
    found = {"logits": logits, "logits_ens": together, "gate": gate, "f1": f1, "f2": f2}
    return found | {f"f3_{k}": last[k] for k in BRANCHES}


def main(folder: Path) -> Path:
  """Write one_resnet32.npz."""
  published = json.loads(SPECS.read_text())["one_resnet32"]
  spec, args = published["state_dict_spec"], published["args"]
  model = OneResNet(**args)
  state = regenerate(spec, SEED)
  missing, unknown = model.load_state_dict(
    {name: torch.tensor(value) for name, value in state.items()}, strict=False
  )
  assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
  assert [[name, list(value.shape)] for name, value in model.state_dict().items()] == spec
  model.double()
  images = np.random.default_rng(SEED).integers(-96, 97, (4, 32, 32, 3)).astype(np.float32) / 32
  stored = {
    "model": "one_resnet32",
    "args": json.dumps(args),
    "num_classes": 100,
    "seed": SEED,
    "n_params": published["n_params"],
    "macs": published["macs"],
    "state_dict_spec": json.dumps(spec),
    "sd_sum": [state[name].sum(dtype=np.float64) if name in state else 0.0 for name, _ in spec],
    "sd_sha256": digest(state),
    "x": images,
    "pre_same_as_post": "[]",
  }
  norms = {
    name: (part, part.running_var.numpy().copy())
    for name, part in model.named_modules()
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
  }
  seen = {}
  for name, (part, _) in norms.items():
    part.register_forward_hook(
      lambda _, inputs, __, name=name: seen.update({name: inputs[0].numel() / inputs[0].shape[1]})
    )
  x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
  for phase in ("eval", "train"):
    model.train(phase == "train")
    with torch.no_grad():
      found = model(x)
    for name, value in found.items():
      store(stored, f"{phase}/{name}", value.permute(0, 2, 3, 1) if value.ndim == 4 else value)

  stored["train/bn_names"] = json.dumps(list(norms))
  stored["train/bn_picked"] = json.dumps(["bn_v1", "layer3_2.0.downsample.1"])
  means, variances = [], []
  for name, (part, before) in norms.items():
    n = seen[name]
    # Flax stores the biased variance of the batch.
    biased = 0.9 * before + (part.running_var.numpy() - 0.9 * before) * (n - 1) / n
    stored[f"train/bn/{name}/running_mean"] = part.running_mean.numpy()
    stored[f"train/bn/{name}/running_var_biased"] = biased
    means.append(part.running_mean.numpy().sum())
    variances.append(biased.sum())
  stored["train/bn_mean_sum"], stored["train/bn_var_biased_sum"] = means, variances
  path = folder / "one_resnet32.npz"
  np.savez(path, **{name: np.asarray(value) for name, value in stored.items()})
  return path


def store(stored: dict, key: str, value: torch.Tensor) -> None:
  array = value.numpy()
  stored[f"{key}.shape"] = array.shape
  stored[f"{key}.stats"] = array.mean(), array.std(), np.linalg.norm(array), np.abs(array).max()
  stored[key] = array.astype(np.float32)
