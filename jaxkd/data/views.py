"""Further versions of the examples of a batch, `Batch.views`, prepared as its inputs are."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

from jaxkd.data.keys import fold
from jaxkd.types import Array, Batch


def with_views(
  keys: Array,
  batch: Batch,
  augmentations: Sequence[str],
  prepare: Callable[[Array, Batch], Batch],
) -> Batch:
  """Return a batch with its views prepared, each with keys of its own.

  The keys of a view are functions of its name and of the keys of the inputs, so that they depend
  neither on other views nor on the number of devices.

  Args:
    keys: one key per example, those of the inputs.
    batch: batch as stored; its views are inputs of other examples, as stored.
    augmentations: names of views that are added: the same inputs.
    prepare: normalisation and augmentation of inputs.
  """
  stored = {**dict.fromkeys(augmentations, batch.inputs), **batch.views}
  views = {}
  for name, inputs in stored.items():
    own = fold(keys, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    views[name] = prepare(own, dataclasses.replace(batch, inputs=inputs, views={})).inputs
  return dataclasses.replace(batch, views=views)
