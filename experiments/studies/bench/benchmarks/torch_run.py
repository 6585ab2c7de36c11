"""A whole KD run in plain PyTorch: images in memory, crop and flip, SGD, a cosine, scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from benchmarks.torch_twin import ResNet, TorchStep, twin
from jaxkd import models


def run(job: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """Train the job's student; returns its accuracy on the test split.

  Args:
    job: a job of `benchmarks.whole_runs`.
    arrays: images (N, H, W, C) uint8 and labels of "train", "validation" and "test", and the
      initial variables, "teacher/..." and "student/...".
  """
  torch.manual_seed(job["seed"])
  channels = arrays["train_images"].shape[-1]
  teacher, student = (
    twin(
      models.create(job[role], num_classes=job["num_classes"]), _variables(arrays, role), channels
    )
    for role in ("teacher", "student")
  )
  step = TorchStep(
    teacher,
    student,
    channels_last=job["channels_last"],
    temperature=job["temperature"],
    kd_weight=job["kd_weight"],
    label_weight=job["label_weight"],
    learning_rate=job["learning_rate"],
    momentum=job["momentum"],
    nesterov=True,
    weight_decay=job["weight_decay"],
  )
  shape = (1, channels, 1, 1)
  mean, std = (torch.tensor(job[name]).reshape(shape) for name in ("mean", "std"))

  def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - mean) / std

  images, labels = _split(arrays, "train")
  batch_size, done = job["batch_size"], 0
  rest = torch.empty(0, dtype=torch.int64)
  while done < job["steps"]:
    # As ours: a batch may contain the end of one epoch and the start of the next.
    rest = torch.cat([rest, torch.randperm(len(labels))])
    while len(rest) >= batch_size and done < job["steps"]:
      chosen, rest = rest[:batch_size], rest[batch_size:]
      for group in step.optimizer.param_groups:
        group["lr"] = _rate(job, done)
      step.step(_augmented(normalized(images[chosen]), -mean / std, job["crop"]), labels[chosen])
      done += 1
  scores = {
    split: _accuracy(step.student, *_split(arrays, split), normalized)
    for split in ("validation", "test")
  }
  return {"accuracy": scores["test"], "steps": done, "loss": step.loss}


def _variables(arrays: dict[str, np.ndarray], role: str) -> dict[str, Any]:
  named = {tuple(k.split("/")): v for k, v in arrays.items() if k.startswith(f"{role}/")}
  return unflatten_dict(named)[role]


def _split(arrays: dict[str, np.ndarray], name: str) -> tuple[torch.Tensor, torch.Tensor]:
  images = torch.from_numpy(arrays[f"{name}_images"].transpose(0, 3, 1, 2).copy())
  return images, torch.from_numpy(arrays[f"{name}_labels"].astype(np.int64))


def _rate(job: dict[str, Any], done: int) -> float:
  warmup = min(1.0, (done + 1) / job["warmup_steps"])
  return job["learning_rate"] * warmup * 0.5 * (1 + math.cos(math.pi * done / job["steps"]))


def _augmented(images: torch.Tensor, black: torch.Tensor, padding: int) -> torch.Tensor:
  """Crop each image at a random position of a padded copy, and mirror half of them."""
  batch, channels, height, width = images.shape
  padded = black.expand(batch, channels, height + 2 * padding, width + 2 * padding).clone()
  padded[:, :, padding : padding + height, padding : padding + width] = images
  top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1))
  rows, columns = top + torch.arange(height), left + torch.arange(width)
  columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
  places = (torch.arange(batch)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :])
  return padded[places].permute(0, 3, 1, 2)


@torch.inference_mode()
def _accuracy(
  student: ResNet, images: torch.Tensor, labels: torch.Tensor, normalized: Any
) -> float:
  student.eval()
  right = 0
  for start in range(0, len(labels), 500):
    logits = student(normalized(images[start : start + 500]))
    right += int((logits.argmax(1) == labels[start : start + 500]).sum())
  student.train()
  return right / len(labels)
