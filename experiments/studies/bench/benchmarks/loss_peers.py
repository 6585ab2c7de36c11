"""The same losses in PyTorch: torchdistill's own classes, else plain formulas. Needs both.

Every function returns one from (student's arrays, teacher's, labels) to a scalar, NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional
from torchdistill.losses import mid_level

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor]

_MAPS = ("stage1", "stage2", "stage3")


def kd() -> Loss:
  """Labels and soft targets at T = 4, half each."""
  return _torchdistill(
    mid_level.KDLoss("logits", "output", "logits", "output", temperature=4.0, alpha=0.5)
  )


def fitnets() -> Loss:
  """The wrapper that torchdistill's configurations for FitNets name."""
  ends = {
    "input": {"is_from_teacher": False, "module_path": "stage2", "io": "output"},
    "target": {"is_from_teacher": True, "module_path": "stage2", "io": "output"},
  }
  return _torchdistill(mid_level.SimpleLossWrapper(torch.nn.MSELoss(), **ends))


def at() -> Loss:
  """Mode "code" of torchdistill."""
  return _torchdistill(mid_level.ATLoss(_pairs(_MAPS), mode="code"))


def ft() -> Loss:
  """Order 1."""
  return _torchdistill(
    mid_level.FTLoss(p=1, reduction="mean", paraphraser_path="factor", translator_path="factor")
  )


def ab() -> Loss:
  """Margin 1, the sum over the examples' mean."""
  return _torchdistill(mid_level.AltActTransferLoss(_pairs(_MAPS), margin=1.0, reduction="mean"))


def fsp() -> Loss:
  """Three flows from the stem on."""
  flows = {}
  for first, second in (("stem", "stage1"), ("stage1", "stage2"), ("stage2", "stage3")):
    flows[first] = {
      f"{who}_{place}": {"io": "output", "path": path}
      for who in ("student", "teacher")
      for place, path in (("first", first), ("second", second))
    }
  return _torchdistill(mid_level.FSPLoss(flows))


def rkd() -> Loss:
  """Distances weighted 1, angles 2."""
  return _torchdistill(mid_level.RKDLoss("pooled", "pooled", 1.0, 2.0, reduction="mean"))


def simkd() -> Loss:
  """The mean square of the authors' loop after the projector."""
  return lambda s, t, labels: functional.mse_loss(s["stage3"], t["stage3"])


def gradient_at() -> Loss:
  """The distance of the two networks' gradients by the images, as the paper has it."""
  return lambda s, t, labels: (s["images"] - t["images"]).flatten(1).norm(dim=1).mean()


def nst() -> Loss:
  """Squared polynomial MMD of the channels' unit maps, from matrices of inner products."""

  def of_stage(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    s, t = (functional.normalize(x.flatten(2), dim=2) for x in (s, t))
    within, across, constant = (
      torch.bmm(x, y.transpose(1, 2)).pow(2).mean() for x, y in ((s, s), (s, t), (t, t))
    )
    return within - 2 * across + constant

  return lambda s, t, labels: sum(of_stage(s[name], t[name]) for name in _MAPS)


def value_and_gradient(name: str, *, compiled: bool) -> Callable[..., list[torch.Tensor]]:
  """Return (student's tensors, teacher's, labels) -> the loss, then gradients in order of names.

  Args:
    name: one of `loss_cases.CASES`.
    compiled: use torch.compile, for these shapes alone.
  """
  loss_of = _LOSSES[name]()
  if compiled:
    loss_of = torch.compile(loss_of, dynamic=False)

  def run(students: Tensors, teachers: Tensors, labels: torch.Tensor) -> list[torch.Tensor]:
    loss = loss_of(students, teachers, labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(students.values()))]

  return run


def tensors(arrays: Mapping[str, np.ndarray], *, learning: bool) -> dict[str, torch.Tensor]:
  """Return NHWC arrays in PyTorch's layout: contiguous NCHW."""
  found = {}
  for name, x in arrays.items():
    laid_out = np.ascontiguousarray(np.moveaxis(x, 3, 1)) if x.ndim == 4 else x.copy()
    found[name] = torch.from_numpy(laid_out).requires_grad_(learning)
  return found


def array(x: torch.Tensor) -> np.ndarray:
  """Return a tensor as an NHWC array."""
  x = x.detach().numpy()
  return np.moveaxis(x, 1, 3) if x.ndim == 4 else x


def _torchdistill(loss: torch.nn.Module) -> Loss:
  def run(students: Tensors, teachers: Tensors, labels: torch.Tensor) -> torch.Tensor:
    s, t = ({name: {"output": x} for name, x in xs.items()} for xs in (students, teachers))
    return loss(s, t, labels)

  return run


def _pairs(stages: tuple[str, ...]) -> dict:
  place = {name: {"io": "output", "path": name} for name in stages}
  return {name: {"student": place[name], "teacher": place[name]} for name in stages}


_LOSSES: dict[str, Callable[[], Loss]] = {
  "kd": kd,
  "fitnets": fitnets,
  "at": at,
  "gradient_at": gradient_at,
  "nst": nst,
  "ft": ft,
  "ab": ab,
  "fsp": fsp,
  "rkd": rkd,
  "simkd": simkd,
}
