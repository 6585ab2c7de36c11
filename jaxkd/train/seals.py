"""Digests of a checkpoint's files, by which damage is found before anything else reads them.

Neither orbax nor what it writes with notices a flipped bit in an array's data.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pathlib

from orbax import checkpoint as ocp

_SEAL = "digests.json"
# Orbax writes these two after the seal, and needs neither to read a checkpoint.
_ABOUT, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A checkpoint being written, which is sealed before it gets its name: none is without."""

  async def finalize(self) -> None:
    """Seals it, and lets it appear."""
    folder = pathlib.Path(self.get())
    # Orbax does the same with its items, which are parts of it.
    if ocp.path.atomicity_types.TMP_DIR_SUFFIX not in folder.parent.name:
      await asyncio.to_thread(seal, folder)
    await super().finalize()


def seal(folder: pathlib.Path) -> None:
  """Writes a digest of every file below `folder` into it."""
  (folder / _SEAL).write_text(json.dumps(_digests(folder), indent=1, sort_keys=True))


def check_seal(folder: pathlib.Path) -> None:
  """Reads every file that was sealed.

  A folder without a seal, as earlier versions left them, passes.

  Raises:
    ValueError: naming the first file that is not what it was.
  """
  try:
    json.loads((folder / _ABOUT).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{_ABOUT} is damaged ({error})") from error
  if not (folder / _SEAL).exists():
    return
  try:
    sealed = dict(json.loads((folder / _SEAL).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{_SEAL} is damaged ({error})") from error
  found = _digests(folder)
  for name, digest in sealed.items():
    if name not in found:
      raise ValueError(f"{name} is missing")
    if found[name] != digest:
      raise ValueError(f"{name} is not what was written")


def _digests(folder: pathlib.Path) -> dict[str, str]:
  found = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name not in (_SEAL, _ABOUT, _COMMITTED):
      with path.open("rb") as file:
        found[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found
