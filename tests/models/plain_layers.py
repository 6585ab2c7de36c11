"""Reference convolution and batch normalisation: loops in float64 numpy."""

from __future__ import annotations

import numpy as np


def convolved(x, kernel, stride=1, groups=1):
  """Convolution of NHWC images with a (k, k, C / groups, O) kernel and a padding of k // 2."""
  size, _, inputs, outputs = kernel.shape
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
  y = np.zeros((len(x), rows, columns, outputs))
  for i in range(rows):
    for j in range(columns):
      window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
      for o in range(outputs):
        first = o // (outputs // groups) * inputs
        y[:, i, j, o] = (window[..., first : first + inputs] * kernel[..., o]).sum((1, 2, 3))
  return y


def normalised(x, variables, *path):
  """Batch normalisation with the running statistics at `path`."""
  params, stats = variables["params"], variables["batch_stats"]
  for part in path:
    params, stats = params[part], stats[part]
  y = (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"], np.float64) + 1e-5)
  return y * params["scale"] + params["bias"]


def rectified(x):
  return np.maximum(x, 0)
