"""The objective of a scheme and its gradients, for weights that do not depend on jax's generators.

A weight depends on its path alone ("student/params/stem/kernel"), so that networks of one name have
the same weights in every phase and in every method. `RENAMED` keeps them where a path changes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.networks import select
from jaxkd.runtime.mapping import AXIS_NAME
from jaxkd.types import Batch, Context, Scheme
from tests.methods.one_step import jit
from tests.recorded_values.cases import NUM_CLASSES, PAIRS, schemes_of

FOLDER = Path(__file__).parent / "values"

# New prefix of a path of weights -> the one that was recorded, such as {"peer_0": "student"}; whole
# names between slashes, the longest that fits. It holds for names of participants in results, too.
RENAMED: Mapping[str, str] = {
  # One adapter holds what were connectors of several stages.
  f"{method}_adapter/{collection}/modules_{stage}": f"{method}_{stage}_connector/{collection}"
  for method in ("ab", "fsp")
  for collection in ("params", "batch_stats")
  for stage in ("stem", "stage1", "stage2", "stage3", "stage4")
}
# New name of a phase or of a term -> the one that was recorded.
RENAMED_PHASES: Mapping[str, str] = {}
RENAMED_TERMS: Mapping[str, str] = {}

# The differences that are let pass, relative to what was recorded.
TOLERANCES = {"loss": 1e-6, "terms": 1e-6, "gradients": 1e-5, "state": 1e-5}


def key_of(variant: str, pair: str) -> str:
  """Return the name of a case in the file."""
  return f"{variant} @ {pair}"


def recorded() -> dict[str, Any]:
  """The files: case -> phase -> {"loss": ..., "terms": ..., "gradients": ..., "state": ...}."""
  found: dict[str, Any] = {}
  for file in sorted(FOLDER.glob("*.json")):
    found.update(json.loads(file.read_text()))
  return found


def write(values: dict[str, Any]) -> None:
  """Write the values of all cases, one file per method or sum of methods."""
  by_method: dict[str, dict[str, Any]] = {}
  for key, phases in values.items():
    method = key.split(" @ ")[0].split("/")[0]
    by_method.setdefault(method, {})[key] = phases
  for method, cases in by_method.items():
    text = json.dumps(cases, indent=1, sort_keys=True) + "\n"
    (FOLDER / f"{method}.json").write_text(text)


def values_of(variant: str, pair: str, *, without: Collection[str] = ()) -> dict[str, Any]:
  """Phase -> its values, under the names that are recorded; all phases but those `without`."""
  networks = PAIRS[pair]
  batch = _batch(networks.image_shape)
  found = schemes_of(variant, networks)
  named = {RENAMED_PHASES.get(name, name): scheme for name, scheme in found.items()}
  return {name: _values(scheme, batch) for name, scheme in named.items() if name not in without}


def differences(found: Any, wanted: Any, kind: str = "") -> Iterator[tuple[str, str, float]]:
  """(where, kind, difference relative to what is wanted) of every number of two nested dicts.

  `kind` is the key of `TOLERANCES` above a number. What one of both lacks differs infinitely.
  """
  if isinstance(found, Mapping) and isinstance(wanted, Mapping):
    for name in sorted({*found, *wanted}):
      below = name if name in TOLERANCES else kind
      if name not in found or name not in wanted:
        yield f"{name}: {'missing' if name in wanted else 'not recorded'}", below, float("inf")
        continue
      for where, of_kind, difference in differences(found[name], wanted[name], below):
        yield f"{name}/{where}", of_kind, difference
  elif found == wanted:
    yield f" {found!r}, recorded {wanted!r}", kind, 0.0
  else:
    off = abs(found - wanted) / abs(wanted) if wanted else float("inf")
    # What is not a number is never near one.
    yield f" {found!r}, recorded {wanted!r}", kind, off if off == off else float("inf")


def too_large(found: Any, wanted: Any) -> list[str]:
  """A line for every difference that `TOLERANCES` do not let pass."""
  return [
    f"{where}, off by {difference:.2g}"
    for where, kind, difference in differences(found, wanted)
    if difference > TOLERANCES.get(kind, 0.0)
  ]


def largest(found: Any, wanted: Any) -> dict[str, float]:
  """Kind -> the largest difference of it."""
  worst: dict[str, float] = {}
  for _, kind, difference in differences(found, wanted):
    worst[kind] = max(worst.get(kind, 0.0), difference)
  return worst


def recorded_path(path: str) -> str:
  """A path with its longest prefix in `RENAMED` as it was recorded."""
  parts = path.split("/")
  for count in range(len(parts), 0, -1):
    prefix = "/".join(parts[:count])
    if prefix in RENAMED:
      return "/".join([RENAMED[prefix], *parts[count:]])
  return path


def _values(scheme: Scheme, batch: Batch) -> dict[str, Any]:
  participants = _weights(scheme, batch)

  def run(participants: Any, batch: Batch) -> Any:
    context = Context(jax.random.key(0), jnp.int32(3), AXIS_NAME)
    targets = jax.lax.stop_gradient(scheme.targets(participants, batch))
    (loss, aux), gradients = jax.value_and_grad(scheme.loss, has_aux=True)(
      select(participants, scheme.learners), participants, batch, targets, context
    )
    terms = {
      # A term that a loss does not have is a Python zero.
      RENAMED_TERMS.get(name, name): {
        kind: getattr(of_loss, kind)
        for kind in ("feature", "logit")
        if isinstance(getattr(of_loss, kind), jax.Array)
      }
      for name, of_loss in aux.terms.items()
    }
    return loss, terms, gradients, aux.state

  on_one_device = jax.tree.map(lambda x: x[None], batch)
  mapped = jax.vmap(run, in_axes=(None, 0), axis_name=AXIS_NAME)
  found = jax.device_get(jit(mapped)(participants, on_one_device))
  loss, terms, gradients, state = jax.tree.map(lambda x: x[0], found)
  return {
    "loss": float(loss),
    "terms": jax.tree.map(float, terms),
    "gradients": _norms({name: {"params": tree} for name, tree in gradients.items()}),
    "state": _norms(state),
  }


def _norms(participants: Mapping[str, Any]) -> dict[str, float]:
  """Recorded participant -> the L2 norm of all its arrays; none for one that has no array."""
  squares: dict[str, float] = {}
  for path, leaf in jax.tree.leaves_with_path(participants):
    names = recorded_path("/".join(str(entry.key) for entry in path)).split("/")
    squares[names[0]] = squares.get(names[0], 0.0) + float(np.sum(np.float64(leaf) ** 2))
  return {name: float(np.sqrt(total)) for name, total in squares.items()}


def _batch(image_shape: tuple[int, int, int]) -> Batch:
  """Eight images, one of which has no label that counts."""
  rng = np.random.default_rng(0)
  size = 8
  weights = np.ones(size, "float32")
  weights[5] = 0.0
  images = rng.normal(size=(size, *image_shape)).astype("float32")
  return Batch(
    images,
    rng.integers(0, NUM_CLASSES, size).astype("int32"),
    weights,
    np.arange(size, dtype="int32"),
    np.zeros(size, "int32"),
    views={
      "partner": images[::-1],
      "strong": rng.normal(size=(size, *image_shape)).astype("float32"),
    },
  )


def _weights(scheme: Scheme, batch: Batch) -> Any:
  """Every participant, its parameters and statistics drawn; other collections as they begin."""

  def init() -> Any:
    return scheme.init(jax.random.key(0), batch)

  shapes = jax.eval_shape(init)

  def others(participants: Any) -> Any:
    return {
      name: {c: tree for c, tree in variables.items() if c not in ("params", "batch_stats")}
      for name, variables in participants.items()
    }

  begun = others(shapes)
  if jax.tree.leaves(begun):
    begun = jax.device_get(jit(lambda: others(init()))())
  drawn = jax.tree_util.tree_map_with_path(_draw, shapes)
  return {name: {**variables, **begun[name]} for name, variables in drawn.items()}


def _draw(path: Any, like: Any) -> np.ndarray:
  names = [str(entry.key) for entry in path]
  rng = np.random.default_rng(zlib.crc32(recorded_path("/".join(names)).encode()))
  if names[-1] in ("scale", "var"):
    value = rng.uniform(0.5, 1.5, like.shape)
  elif len(like.shape) > 1:
    # Signals behind a ReLU keep their size.
    value = rng.normal(0, np.sqrt(2 / np.prod(like.shape[:-1])), like.shape)
  else:
    value = rng.normal(0, 0.1, like.shape)
  return value.astype(like.dtype)
