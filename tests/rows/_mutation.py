"""A mutation of a loss, or of other code of a method."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
  """One mutation: `old` becomes `new` in a file of jaxkd.

  Attributes:
    what: description of the mutation, for the table.
    file: name of a file of jaxkd/losses, or path of another one in jaxkd, as "train/step.py".
    old: text that occurs exactly once in the file.
    new: its replacement.
    tests: file in tests/losses that runs, besides test_every_loss.py; or path of another one in
      tests, which then runs alone.
    parity: method whose golden cases run; "" if there is no published code.
  """

  what: str
  file: str
  old: str
  new: str
  tests: str
  parity: str
