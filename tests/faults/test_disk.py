"""A full or read-only disk: the run ends with one line, and resumes when it can write again."""

import pathlib
import shutil
import subprocess

import pytest

from tests.faults.digits_runs import alone, assert_same_bits

pytestmark = pytest.mark.faults


def mounted(*arguments):
  return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
  """A disk of a few kilobytes; the test is skipped where mounting is not permitted."""
  place = tmp_path / "disk"
  place.mkdir()
  if not mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", place):
    pytest.skip("no disk may be mounted here")
  yield place
  subprocess.run(["umount", "--lazy", str(place)], check=True)


def size(folder):
  """Return the kilobytes that a folder takes on a disk."""
  return int(subprocess.run(["du", "-sk", str(folder)], capture_output=True).stdout.split()[0])


def errors_of(done):
  """Return standard error without orbax's lines about removing unfinished saves."""
  lines = done.stderr.splitlines()
  return [line for line in lines if "Removing existing directory since it is not fin" not in line]


def test_a_disk_that_fills_up(whole, disk, record_property):
  """With more and more space, the same command gets further and further."""
  folder, finished = whole
  workdir = disk / "run"
  written = []
  # Too little for a checkpoint, for a second one, and for a third beside the two that are kept.
  for room in (40, 400, 650, 8 * size(finished)):
    assert mounted("-o", f"remount,size={room}k", disk)
    done = alone(workdir, folder)
    if done.returncode == 0:
      break
    assert (done.returncode, len(errors_of(done))) == (1, 1), done.stderr
    (line,) = errors_of(done)
    assert line.startswith(f"error: {'checkpoints in ' if 'checkpoints in' in line else ''}{disk}")
    assert line.endswith("cannot be written: No space left on device"), line
    written.append(line.split(str(workdir))[1].split(" cannot")[0])
  assert done.returncode == 0
  assert_same_bits(finished, workdir)
  assert len(written) == 3
  record_property("fault", "the disk is full")
  record_property("tries", len(written))
  record_property(
    "outcome",
    f"{len(written)} ended in one line, status 1 (writing {', '.join(sorted(set(written)))}); with "
    "room the same command went on to the same bits",
  )


def test_a_disk_that_is_read_only(whole, disk, record_property):
  folder, finished = whole
  assert mounted("-o", f"remount,size={8 * size(finished)}k", disk)
  workdir = disk / "run"
  shutil.copytree(finished, workdir)
  (workdir / "summary.json").unlink()
  assert mounted("-o", "remount,ro", disk)
  done = alone(workdir, folder)
  assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
  assert done.stderr.startswith(
    f"error: workdir {workdir} cannot be written (Read-only file system)"
  )
  assert mounted("-o", "remount,rw", disk)
  assert alone(workdir, folder).returncode == 0
  assert_same_bits(finished, workdir)
  record_property("fault", "the disk is read only")
  record_property("tries", 1)
  record_property("outcome", "one line, status 1; written to again, on to the same bits")


def test_a_finished_run_on_a_read_only_disk_is_still_shown(whole, disk, record_property):
  folder, finished = whole
  assert mounted("-o", f"remount,size={8 * size(finished)}k", disk)
  shutil.copytree(finished, disk / "run")
  assert mounted("-o", "remount,ro", disk)
  done = alone(pathlib.Path(disk / "run"), folder)
  assert (done.returncode, done.stderr) == (0, "")
  assert "is complete" in done.stdout
  record_property("fault", "a finished run on a read-only disk")
  record_property("tries", 1)
  record_property("outcome", "its table is shown")
