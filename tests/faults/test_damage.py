"""Damaged files: a run resumes from undamaged ones and ends in the same bits, or prints why not.

A finished run without its summary represents one that was killed at the very end: whatever is wrong
with its newest checkpoint, the last step can be repeated.
"""

import itertools
import pathlib
import shutil

import pytest

from tests.faults.digits_runs import alone, assert_same_bits

pytestmark = pytest.mark.faults


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def empty(file):
  file.write_bytes(b"")


HARMS = (truncate, flip, empty, pathlib.Path.unlink)


@pytest.fixture
def unfinished(whole, tmp_path):
  """(folder, a copy of the run without its summary)."""
  workdir = tmp_path / "run"
  shutil.copytree(whole[1], workdir)
  (workdir / "summary.json").unlink()
  return whole[0], workdir


def files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def kinds(newest):
  """Return the largest file of each kind in a checkpoint; files with random names are one kind."""
  found = {}
  for file in sorted(files(newest), key=lambda file: file.stat().st_size):
    name = file.relative_to(newest).as_posix()
    found[name.rsplit("/", 1)[0] if "/d/" in name else name] = name
  return sorted(found.values())


def test_a_damaged_file_of_the_newest_checkpoint(whole, unfinished, record_property):
  """Every kind of file is damaged, with a real run for each; the ways of damage take turns."""
  folder, workdir = unfinished
  newest = workdir / "checkpoints" / "alone" / "6"
  pristine = workdir.with_name("pristine")
  shutil.copytree(workdir, pristine)
  tries = list(zip(kinds(newest), itertools.cycle(HARMS), strict=False))
  fell_back, unharmed = 0, 0
  for name, harm in tries:
    shutil.rmtree(workdir)
    shutil.copytree(pristine, workdir)
    harm(newest / name)
    done = alone(workdir, folder)
    assert done.returncode == 0, (name, harm, done.stderr)
    assert_same_bits(whole[1], workdir)
    if "going on from checkpoint 5" in done.stderr:
      assert len(done.stderr.splitlines()) == 1, done.stderr
      assert (newest.with_name("6.damaged") / name).exists() == (harm is not pathlib.Path.unlink)
      fell_back += 1
    else:
      assert done.stderr == "", (name, harm)
      unharmed += 1
  record_property("fault", "a file of the newest checkpoint truncated, flipped, emptied, deleted")
  record_property("tries", len(tries))
  record_property(
    "outcome",
    f"{fell_back + unharmed} to the same bits: {fell_back} from the checkpoint before, said in one "
    f"line, {unharmed} from files of which nothing is needed",
  )


def test_no_good_checkpoint(unfinished, record_property):
  folder, workdir = unfinished
  for step in ("5", "6"):
    flip(max(files(workdir / "checkpoints/alone" / step), key=lambda path: path.stat().st_size))
  before = {path: path.read_bytes() for path in files(workdir)}
  done = alone(workdir, folder)
  assert done.returncode == 1
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert done.stderr.startswith(
    f"error: no checkpoint in {workdir}/checkpoints/alone can be read: "
  )
  assert {path: path.read_bytes() for path in files(workdir)} == before
  record_property("fault", "all checkpoints of a stage with a flipped bit")
  record_property("tries", 1)
  record_property("outcome", "one line naming each and its file, status 1; no file changed")


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_metrics_file(whole, unfinished, record_property, harm):
  folder, workdir = unfinished
  harm(workdir / "metrics.jsonl")
  done = alone(workdir, folder)
  assert (done.returncode, done.stderr) == (0, "")
  assert_same_bits(whole[1], workdir)
  record_property("fault", f"metrics.jsonl: {harm.__name__}")
  record_property("tries", 1)
  record_property("outcome", "written anew from the checkpoint")


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_document(whole, tmp_path, record_property, name):
  folder, finished = whole
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  for harm in (truncate, empty):
    shutil.copy(finished / name, workdir / name)
    harm(workdir / name)
    before = {path: path.read_bytes() for path in files(workdir)}
    done = alone(workdir, folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {workdir / name} is damaged"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in files(workdir)} == before
  record_property("fault", f"{name} truncated or empty")
  record_property("tries", 2)
  record_property("outcome", "2 ended in one line naming it, status 1; no file changed")


def test_a_summary_that_is_gone(whole, unfinished, record_property):
  folder, workdir = unfinished
  done = alone(workdir, folder)
  assert (done.returncode, done.stderr) == (0, "")
  assert_same_bits(whole[1], workdir)
  record_property("fault", "summary.json of a finished run deleted")
  record_property("tries", 1)
  record_property("outcome", "the same made anew from the checkpoints")
