"""A teacher trained with PyTorch alone, whose modules have the published names.

python -m tests.with_torch.train_teacher FOLDER writes teacher.pth, teacher_legacy.pth,
teacher.safetensors, and images.npz: the test images, their labels, and PyTorch's logits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

WIDTHS = (8, 8, 16, 32)
TRAINING_EXAMPLES = 1400


class Block(nn.Module):
  """conv-BN-ReLU-conv-BN plus shortcut, ReLU."""

  def __init__(self, before: int, width: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample = None
    if stride != 1 or before != width:
      shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet14(nn.Module):
  """A stem, three stages of two blocks, a mean, a linear classifier."""

  def __init__(self, channels: int, classes: int):
    super().__init__()
    stem, first, second, third = WIDTHS
    self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(stem)
    self.layer1 = nn.Sequential(Block(stem, first, 1), Block(first, first, 1))
    self.layer2 = nn.Sequential(Block(first, second, 2), Block(second, second, 1))
    self.layer3 = nn.Sequential(Block(second, third, 2), Block(third, third, 1))
    self.fc = nn.Linear(third, classes)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    x = self.layer3(self.layer2(self.layer1(x)))
    return self.fc(x.mean((2, 3)))


def main(folder: Path, epochs: int = 15) -> float:
  torch.manual_seed(0)
  digits = load_digits()
  images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
  labels = torch.tensor(digits.target)
  order = torch.randperm(len(labels))
  training, test = order[:TRAINING_EXAMPLES], order[TRAINING_EXAMPLES:]
  model = ResNet14(1, 10)
  optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
  for _ in range(epochs):
    for batch in torch.split(training[torch.randperm(len(training))], 64):
      optimizer.zero_grad()
      F.cross_entropy(model(images[batch]), labels[batch]).backward()
      optimizer.step()
    schedule.step()
  model.eval()
  with torch.no_grad():
    logits = model(images[test])
  accuracy = (logits.argmax(1) == labels[test]).float().mean()

  folder.mkdir(parents=True, exist_ok=True)
  # As in published code: options, the optimizer and the accuracy beside the weights.
  checkpoint = {
    "epoch": epochs,
    "model": model.state_dict(),
    "best_acc": accuracy,
    "optimizer": optimizer.state_dict(),
    "opt": argparse.Namespace(learning_rate=0.1, device=torch.device("cpu")),
  }
  torch.save(checkpoint, folder / "teacher.pth")
  torch.save(checkpoint, folder / "teacher_legacy.pth", _use_new_zipfile_serialization=False)
  save_file(model.state_dict(), folder / "teacher.safetensors")
  np.savez(
    folder / "images.npz",
    images=images[test].permute(0, 2, 3, 1).numpy(),
    labels=labels[test].numpy(),
    logits=logits.numpy(),
  )
  return accuracy.item()


if __name__ == "__main__":
  print(f"accuracy of the teacher in PyTorch: {main(Path(sys.argv[1])):.4f}")
