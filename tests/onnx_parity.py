"""Agreement of ONNX models in onnxruntime with jax, by architecture: `make onnx-parity`.

Each model of the zoo, and each way to combine networks, with random weights is exported for any
number of images and compared as `jaxkd export --format onnx` compares. The table goes to
tests/onnx_parity.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping

# The reference is computed once per model, so that compilation takes most of the time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import jax.numpy as jnp
import onnx

from jaxkd import models
from jaxkd.adapters import Gate, Projector
from jaxkd.export.onnx.files import TOLERANCE, export_onnx
from jaxkd.types import Network
from tests.models.drawn import drawn
from tests.tiny import TinyNet

TABLE = pathlib.Path(__file__).with_name("onnx_parity.md")
CLASSES = 10


def combined() -> dict[str, tuple[object, tuple[int, int, int]]]:
  """The ways to combine networks: name -> module, image shape."""
  small = models.create("resnet8_w4", num_classes=CLASSES)
  teacher = models.create("resnet8_w8", num_classes=CLASSES)
  exits = models.create("msdnet_small", num_classes=CLASSES)
  features = jax.eval_shape(
    lambda x: small.init_with_output(jax.random.key(0), x)[0], jnp.ones((1, 32, 32, 3))
  )
  made = {
    "SimKD's spliced student": models.ReusedClassifier(
      small, Projector((8, 8), 32), teacher, "stage3", "stage3"
    ),
    "all exits of MSDNet": exits,
    **{f"exit {n} of MSDNet": models.AtExit(exits, n) for n in range(4)},
    "mean of MSDNet's exits": models.ExitEnsemble(exits),
    **{
      f"all exits of MultiExit, {kind}": models.with_exits(
        small, features, ("stage1", "stage2"), kind=kind, num_classes=CLASSES
      )
      for kind in ("linear", "conv", "projected", "bottleneck", "attention")
    },
    "ensemble of probabilities": models.Ensemble({"a": small, "b": teacher}),
    "ensemble of logits": models.Ensemble({"a": small, "b": teacher}, combine="logits"),
    "gated branches": models.GatedBranches(
      models.Branched(TinyNet(), 2, "stage1"), Gate(2), "stage1"
    ),
  }
  return {name: (module, (32, 32, 3)) for name, module in made.items()}


def zoo(every: bool = False) -> dict[str, tuple[object, tuple[int, int, int]]]:
  """The models by name, on images of 32x32, or of the size that their positions need.

  Args:
    every: True takes all sizes of the models of torchvision, timm and transformers, False the
      first of each class.
  """
  found, known = {}, set()
  for name in models.names():
    module = models.create(name, num_classes=CLASSES)
    source = name.partition("_")[0]
    if source in ("torchvision", "timm", "hf") and not every:
      if (source, type(module)) in known:
        continue
      known.add((source, type(module)))
    published = models.published_preprocessing(name)
    fixed = "patch16" in name or name.startswith("hf_")
    side = published.image_size[0] if published and fixed else 32
    found[name] = (module, (side, side, 3))
  return found


def row(name: str, module: object, shape: tuple[int, int, int]) -> tuple[str, float]:
  """Return the line of a model in the table, and its difference."""
  network = Network(module, drawn(module, jnp.ones((1, *shape))))
  description: Mapping[str, object] = {
    "image_shape": list(shape),
    "mean": [0.45] * 3,
    "std": [0.25] * 3,
  }
  found = export_onnx(network, description)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
  nodes = len(onnx.load_from_string(found.serialized).graph.node)
  kind, size = type(module).__name__, "x".join(map(str, shape[:2]))
  line = f"| {name} | {kind} | {size} | {parameters:,} | {nodes} | {found.difference:.1e} |"
  return line, found.difference


def main() -> None:
  """Write the table; the exit status is 1 if a model has no ONNX form that agrees."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="part of the names to print, not written")
  parser.add_argument("--all", action="store_true", help="all sizes of published models")
  given = parser.parse_args()
  only = given.only
  lines = [
    "| model | class | images | parameters | nodes | difference |",
    "|---|---|---|---|---|---|",
  ]
  print(*lines, sep="\n", flush=True)
  failed, worst = 0, 0.0
  for name, (module, shape) in (combined() | zoo(given.all)).items():
    if only not in name:
      continue
    try:
      line, difference = row(name, module, shape)
      worst = max(worst, difference)
    except ValueError as error:
      failed += 1
      line = f"| {name} | {type(module).__name__} | | | | {error} |"
    print(line, flush=True)
    lines.append(line)
  agree = len(lines) - 2 - failed
  end = f"\n{agree} models agree, the largest difference is {worst:.1e}; {failed} do not."
  print(end)
  if not only:
    intro = (
      "# Agreement of ONNX models with jax\n\n"
      "Written by `make onnx-parity`. The difference is the largest one of logits between\n"
      "onnxruntime and jax, in units of the largest logit or of 1, over a batch of three and\n"
      f"one image alone. At most {TOLERANCE:g} is accepted. Weights are random.\n\n"
    )
    TABLE.write_text(intro + "\n".join(lines) + "\n" + end + "\n")
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  main()
