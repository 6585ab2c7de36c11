"""The same networks and the same step in PyTorch, written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from torch import nn

from jaxkd.models import CifarResNet


class Block(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, ReLU."""

  def __init__(self, before: int, width: int, stride: int) -> None:
    """`before` channels to `width` channels."""
    super().__init__()
    self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample: nn.Module | None = None
    if stride != 1 or before != width:
      shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """(B, before, H, W) -> (B, width, H / stride, W / stride)."""
    y = F.relu(self.bn1(self.conv1(x)), inplace=True)
    y = self.bn2(self.conv2(y))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
  """A stem, three stages of blocks, a mean over the image, a linear classifier."""

  def __init__(self, like: CifarResNet, channels: int) -> None:
    """A network of the sizes of `like`, for images of so many channels."""
    super().__init__()
    stem, *widths = like.widths
    self.conv1 = nn.Conv2d(channels, stem, 3, like.stem_stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(stem)
    before = stem
    for number, width in enumerate(widths, start=1):
      first = Block(before, width, 1 if number == 1 else 2)
      later = (Block(width, width, 1) for _ in range(like.blocks - 1))
      setattr(self, f"layer{number}", nn.Sequential(first, *later))
      before = width
    self.fc = nn.Linear(before, like.num_classes)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """(B, channels, H, W) -> logits."""
    x = F.relu(self.bn1(self.conv1(x)), inplace=True)
    x = self.layer3(self.layer2(self.layer1(x)))
    return self.fc(x.mean((2, 3)))


def twin(network: CifarResNet, variables: Mapping[str, Any], channels: int) -> ResNet:
  """Return the PyTorch network that computes the same as `network` with these variables."""
  found = ResNet(network, channels)
  state = {name: torch.from_numpy(value) for name, value in _named(variables)}
  missing, unexpected = found.load_state_dict(state, strict=False)
  if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
    raise ValueError(f"not the same architecture: {missing} missing, {unexpected} unknown")
  return found


def _named(variables: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Return PyTorch's name and layout of every variable."""
  leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
  for (_, *modules, leaf), value in flatten_dict(dict(variables)).items():
    first, *inner = modules
    if first == "classifier":
      path = ["fc"]
    elif first.startswith("stem_"):
      path = [{"stem_conv": "conv1", "stem_bn": "bn1"}[first]]
    else:
      layer, block = first.removeprefix("stage").split("_")
      shortcut = {"downsample_conv": ["downsample", "0"], "downsample_bn": ["downsample", "1"]}
      path = [f"layer{layer}", block, *shortcut.get(inner[0], inner)]
    array = np.array(value)  # a writable copy
    if leaf == "kernel":
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    yield ".".join([*path, leaves.get(leaf, leaf)]), np.ascontiguousarray(array)


class TorchStep:
  """KD by SGD with momentum, as in a plain PyTorch loop."""

  def __init__(
    self,
    teacher: nn.Module,
    student: nn.Module,
    *,
    channels_last: bool,
    temperature: float,
    kd_weight: float,
    label_weight: float,
    learning_rate: float,
    momentum: float,
    nesterov: bool = False,
    weight_decay: float = 0.0,
  ) -> None:
    """Use these networks; `student` is trained in place."""
    self.layout = torch.channels_last if channels_last else torch.contiguous_format
    self.teacher = teacher.to(memory_format=self.layout).eval().requires_grad_(False)
    self.student = student.to(memory_format=self.layout).train()
    self.optimizer = torch.optim.SGD(
      student.parameters(),
      learning_rate,
      momentum,
      nesterov=nesterov,
      weight_decay=weight_decay,
      fused=True,
    )
    self._temperature, self._kd_weight = temperature, kd_weight
    self._label_weight = label_weight
    self._loss: torch.Tensor | None = None

  @property
  def loss(self) -> float:
    """The loss of the last step."""
    assert self._loss is not None
    return self._loss.item()

  def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One update from images (B, C, H, W)."""
    images = images.contiguous(memory_format=self.layout)
    with torch.inference_mode():
      taught = self.teacher(images)
    t = self._temperature
    # A tensor of inference mode cannot be part of a graph; its copy can.
    targets = F.log_softmax(taught.clone() / t, dim=1)
    logits = self.student(images)
    soft = F.kl_div(
      F.log_softmax(logits / t, dim=1), targets, log_target=True, reduction="batchmean"
    )
    hard = F.cross_entropy(logits, labels)
    loss = self._kd_weight * t * t * soft + self._label_weight * hard
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    self.optimizer.step()
    self._loss = loss.detach()
