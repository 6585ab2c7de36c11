"""Tables of stored logits in a phase: their checks, and their rows for every batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError
from jaxkd.tables import Table
from jaxkd.train.phase import Phase
from jaxkd.types import TABLE, Batch, Participants


class FedTables:
  """The tables of a phase.

  Attributes:
    bytes: total size of the tables on a device.
  """

  def __init__(self, phase: Phase) -> None:
    """Check the tables against the phase's examples and views; nothing is copied.

    Args:
      phase: the phase, with `tables`.

    Raises:
      ConfigError: for a table that is not `fed`, has no row for an example, or has other views than
        the phase; for cached targets.
    """
    self._phase = phase
    for name, table in phase.tables.items():
      _check(f"phase {phase.name!r}: the table of {name!r}", table, phase)
    self.bytes = sum(table.nbytes for table in phase.tables.values())

  def check(self, participants: Participants) -> None:
    """Raise a ConfigError if a table has another digest than the participants of a checkpoint."""
    for name, table in self._phase.tables.items():
      if not np.array_equal(participants[name][TABLE]["digest"], table.digest):
        raise ConfigError(
          f"phase {self._phase.name!r}: the table of {name!r} is not the one that the phase began "
          "with: expected the same file, or another work directory"
        )

  def resident(self) -> dict[str, Any]:
    """Return the arrays of all tables, as devices hold them."""
    return {name: table.resident() for name, table in self._phase.tables.items()}

  def feed(self, batch: Batch) -> Batch:
    """Return a batch on the host with the rows of its examples."""
    if not self._phase.tables:
      return batch
    rows = {n: t.rows(batch.indices, batch.epochs) for n, t in self._phase.tables.items()}
    return dataclasses.replace(batch, tables=rows)


def _check(what: str, table: Table, phase: Phase) -> None:
  if not table.fed:
    raise ConfigError(f"{what} has fed=False: expected Table(..., fed=True) in Phase.tables")
  if phase.cached_targets:
    raise ConfigError(f"{what}: expected cached_targets=False, as its logits are stored already")
  last = int(np.max(phase.examples.indices))
  if last >= len(table):
    raise ConfigError(
      f"{what} has {len(table)} rows: expected more than {last}, an example's index"
    )
  if table.views not in (0, phase.views):
    raise ConfigError(f"{what} has {table.views} views, the phase {phase.views}: expected as many")
