"""Write tests/models/torch_files with PyTorch: files that the library reads without PyTorch.

Run `python -m tests.with_torch.make_files` with PyTorch installed. The values of every tensor count
from 0 in steps of 1/8 (integers: 1), so that they are exact in any precision.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parents[1] / "models" / "torch_files"
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool")


def counting(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
  count = int(np.prod(shape))
  unit = 1 / 8 if dtype.is_floating_point else 1
  return (torch.arange(count) * unit).to(dtype).reshape(shape)


class Hostile:
  """An object whose pickle runs a command when Python loads it."""

  def __reduce__(self):
    return os.system, ("touch jaxkd_was_here",)


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  tensors = {name: counting(2, 3, dtype=getattr(torch, name)) for name in DTYPES}
  shared = counting(4, 5)
  views = {
    "transposed": shared.t(),
    "every_second": shared[:, ::2],
    "last_row": shared[3],
    "expanded": shared[1, 2].expand(2, 2),
    "number": torch.tensor(0.5),
    "empty": torch.zeros(0, 3),
    "parameter": nn.Parameter(counting(3)),
  }
  everything = nn.ParameterDict().state_dict() | tensors | views  # an OrderedDict with _metadata
  checkpoint = {
    "epoch": 3,
    "model": {"module.weight": counting(2, 3)},
    "best_acc": torch.tensor(0.75),
    "numpy_acc": np.float64(0.75),
    "opt": argparse.Namespace(lr=0.1, device=torch.device("cpu"), dtype=torch.float32),
    "shape": torch.Size([2, 3]),
  }
  hostile = {"weight": counting(3), "more": Hostile()}
  for name, value in {
    "tensors": everything,
    "checkpoint": checkpoint,
    "hostile": hostile,
  }.items():
    torch.save(value, FOLDER / f"{name}.pth")
    torch.save(value, FOLDER / f"{name}_legacy.pth", _use_new_zipfile_serialization=False)
  torch.save(nn.ReLU(), FOLDER / "whole_module.pth")
  save_file(tensors, FOLDER / "tensors.safetensors")
  torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), FOLDER / "torchscript.pt")


if __name__ == "__main__":
  main()
