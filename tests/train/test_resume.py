"""A phase resumes exactly where it stopped, and damage loses no readable checkpoint."""

import io
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.report import Lines, ProgressBar
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train import Silent, TrainOptions, check_phases, starting_variables, train_phase
from jaxkd.train.checkpoints import check_checkpoints, check_checksums
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch, examples, phase


class Broken(Exception):
  pass


class StopAfter(Silent):
  """Raises an error once so many updates are reported."""

  def __init__(self, updates):
    self.left = updates

  def stepped(self, metrics, images):
    self.left -= 1
    if self.left == 0:
      raise Broken


class RequestAfter(Silent):
  """Requests a stop once so many updates are reported."""

  def __init__(self, updates):
    self.left, self.stop, self.ended = updates, Interruption(), []

  def stepped(self, metrics, images):
    self.left -= 1
    if self.left == 0:
      assert not self.stop.request(signal.SIGTERM)  # there is something to save

  def phase_ended(self, phase):
    self.ended.append(phase)


# No checkpoint is due by time on a slow machine, unless a test sets a shorter time.
NEVER = 1e9


def train(directory: pathlib.Path, reporter=None, checkpoint_seconds=NEVER, stop=None, **changes):
  return train_phase(
    phase(**changes),
    directory=directory,
    devices=jax.local_devices()[:2],
    reporter=reporter or Silent(),
    validation=examples(9, seed=1),
    test=examples(9, seed=2),
    options=TrainOptions(evaluate_every=2, checkpoint_seconds=checkpoint_seconds),
    stop=stop,
  )


def interrupt(directory: pathlib.Path, updates):
  """Train a phase that saves after every step, and stop it after so many updates."""
  with pytest.raises(Broken):
    train(directory, StopAfter(updates), checkpoint_seconds=0.0)


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(result of an uninterrupted phase, its directory)."""
  directory = tmp_path_factory.mktemp("uninterrupted")
  return train(directory), directory


@pytest.fixture(scope="module")
def uninterrupted(finished):
  return finished[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """The directory of a phase that stopped after nine updates."""
  directory = tmp_path_factory.mktemp("stopped")
  interrupt(directory, 9)
  return directory


def copied(source, target):
  shutil.copytree(source, target, dirs_exist_ok=True)


@pytest.mark.parametrize("updates", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (5, 9))])
def test_a_resumed_phase_ends_in_the_same_bits(tmp_path, uninterrupted, stopped, updates):
  if updates == 9:
    copied(stopped, tmp_path)
  else:
    interrupt(tmp_path, updates)
  resumed = train(tmp_path)
  assert_same(resumed.participants, uninterrupted.participants)
  assert resumed.rows == uninterrupted.rows
  assert resumed.test == uninterrupted.test


@pytest.mark.parametrize(
  "updates", [4, 7, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 12))]
)
def test_a_phase_resumes_where_it_stopped(tmp_path, updates):
  requesting = RequestAfter(updates - 2)  # results are read two updates late
  with pytest.raises(Interrupted) as raised:
    train(tmp_path, requesting, stop=requesting.stop)
  (saved,) = (int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
  assert saved == updates
  if saved < 12:
    assert str(raised.value) == f"alone, after update {saved} of 12"
  printed = io.StringIO()
  bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
  for reporter in (Lines(Console(file=printed)), bar):
    with pytest.raises(Interrupted):
      train(tmp_path, reporter, stop=requesting.stop)
  assert f"alone: 12 steps, resumed after {saved}\n" in printed.getvalue()
  # The stop is requested already: the second run makes one update more and counts it.
  assert [task.completed for task in bar._progress.tasks] == [min(saved + 2, 12)]


@pytest.mark.parametrize(
  "updates", [*(pytest.param(n, marks=pytest.mark.long) for n in (1, 12)), 5]
)
def test_a_stop_request_saves_the_updates_made(tmp_path, uninterrupted, updates):
  requesting = RequestAfter(updates)
  with pytest.raises(Interrupted) as raised:
    train(tmp_path, requesting, stop=requesting.stop)  # no checkpoint is due by time
  saved = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
  # Results are read two updates late.
  assert saved == min(updates + 2, 12)
  where = "its last update" if saved == 12 else f"update {saved} of 12"
  assert str(raised.value) == f"alone, after {where}" and requesting.ended == ["alone"]
  assert requesting.stop.request(signal.SIGINT) == (saved == 12)
  resumed = train(tmp_path)
  assert_same(resumed.participants, uninterrupted.participants)
  assert resumed.rows == uninterrupted.rows


def test_a_finished_phase_is_not_trained_again(tmp_path, finished):
  uninterrupted, directory = finished
  copied(directory, tmp_path)
  again = train(tmp_path, StopAfter(1))
  assert_same(again.participants, uninterrupted.participants)


def test_best_keeps_the_participants_of_the_best_validation(tmp_path, uninterrupted):
  last = uninterrupted
  best = train(tmp_path / "best", keep="best")
  scores = [r["validation"]["student"]["accuracy"] for r in last.rows if "validation" in r]
  assert len(scores) == 2  # after epochs 2 and 4
  best_epochs = 2 * (1 + int(np.argmax(scores)))
  until_best = train(tmp_path / "shorter", epochs=best_epochs, keep="last")
  assert_same(best.participants, until_best.participants)


def damage(directory: pathlib.Path, step: int):
  """Truncate every data file of one checkpoint's state."""
  files = [f for f in (directory / str(step) / "state").rglob("*") if f.is_file()]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted, stopped):
  copied(stopped, tmp_path)
  steps = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
  assert len(steps) == 2
  damage(tmp_path, steps[-1])
  resumed = train(tmp_path)
  assert_same(resumed.participants, uninterrupted.participants)
  assert resumed.rows == uninterrupted.rows


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def newest_and_its_largest(directory, item):
  """The newest checkpoint's step, and the largest file of its item."""
  step = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
  files = [path for path in (directory / str(step) / item).rglob("*") if path.is_file()]
  return step, max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
  ("item", "harm"),
  [
    # Only checksums find these two.
    ("state/ocdbt.process_0/d", flip),
    pytest.param("best/ocdbt.process_0/d", flip, marks=pytest.mark.long),
    pytest.param("progress", lambda file: file.write_bytes(b""), marks=pytest.mark.long),
    ("data", pathlib.Path.unlink),
  ],
)
def test_a_damaged_checkpoint_is_renamed_and_made_anew(
  tmp_path, uninterrupted, stopped, caplog, item, harm
):
  copied(stopped, tmp_path)
  step, file = newest_and_its_largest(tmp_path, item)
  harm(file)
  harmed = {p: p.read_bytes() for p in (tmp_path / str(step)).rglob("*") if p.is_file()}
  resumed = train(tmp_path, checkpoint_seconds=0.0)
  assert_same(resumed.participants, uninterrupted.participants)
  assert resumed.rows == uninterrupted.rows
  (warning,) = caplog.messages
  name = file.relative_to(tmp_path / str(step)).as_posix()
  assert warning.startswith(f"{tmp_path}: checkpoint {step}: {name} is ")
  assert warning.endswith(f"; going on from checkpoint {step - 1}")
  for path, data in harmed.items():
    kept = tmp_path / f"{step}.damaged" / path.relative_to(tmp_path / str(step))
    assert kept.read_bytes() == data


def test_a_step_that_was_damaged_is_saved_again(tmp_path, stopped):
  copied(stopped, tmp_path)
  for times in (1, 2):
    step, file = newest_and_its_largest(tmp_path, "state")
    flip(file)
    with pytest.raises(Broken):
      train(tmp_path, StopAfter(2), checkpoint_seconds=0.0)
    check_checksums(tmp_path / str(step))
    assert len(list(tmp_path.glob(f"{step}.damaged*"))) == times


def test_checkpoints_with_one_position_per_process_are_read(tmp_path, uninterrupted, stopped):
  """The format of earlier versions, here of two processes."""
  copied(stopped, tmp_path)
  positions = list(tmp_path.glob("*/data/metadata"))
  assert len(positions) == 2
  for position in positions:
    for process in (0, 1):
      shutil.copy(position, position.with_name(f"process_{process}-of-2.json"))
    position.unlink()
  for checksums in tmp_path.glob("*/digests.json"):
    checksums.unlink()
  resumed = train(tmp_path)
  assert_same(resumed.participants, uninterrupted.participants)
  assert resumed.rows == uninterrupted.rows


def test_when_no_checkpoint_can_be_read_the_error_says_so_and_deletes_nothing(tmp_path, stopped):
  copied(stopped, tmp_path)
  steps = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
  for step in steps:
    damage(tmp_path, step)
  before = sorted(str(p) for p in tmp_path.rglob("*"))
  with pytest.raises(
    ConfigError, match=rf"no checkpoint in {tmp_path} can be read: checkpoint {steps[-1]}"
  ):
    train(tmp_path)
  with pytest.raises(ConfigError, match=rf"no checkpoint in {tmp_path} can be read: checkpoint"):
    check_checkpoints(tmp_path)
  assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_weights_of_another_architecture_are_refused(tmp_path):
  wide = drawn(methods.supervised(TinyNet(width=6)), batch())
  with pytest.raises(ConfigError, match=r"weights given for 'student' are of another architecture"):
    train_phase(
      phase(given=wide),
      directory=tmp_path / "narrow",
      devices=jax.local_devices()[:1],
      reporter=Silent(),
    )


def test_phases_inherit_from_phases_before_them_only():
  first, second = (
    phase(name="teacher"),
    phase(name="distilled", inherit={"student": "teacher/student"}),
  )
  check_phases([first, second])
  assert starting_variables(second, {"teacher": {"student": 1}}) == {"student": 1}
  with pytest.raises(
    ConfigError, match="inherits 'student' from 'teacher/student', but the phases"
  ):
    check_phases([second, first])
  with pytest.raises(ConfigError, match="two phases are called 'teacher'"):
    check_phases([first, first])
  with pytest.raises(ConfigError, match=r"class_weights=\(1.0, -0.5\): expected finite numbers"):
    check_phases([phase(name="weighted", class_weights=(1.0, -0.5))])
  with pytest.raises(ConfigError, match=r"but phase 'teacher' has \['other'\]"):
    starting_variables(second, {"teacher": {"other": 1}})


def test_a_phase_of_no_epochs_scores_what_it_is_given(tmp_path, uninterrupted):
  scored = train_phase(
    phase(epochs=0, average_decay=None, given=uninterrupted.participants),
    directory=tmp_path,
    devices=jax.local_devices()[:2],
    reporter=Silent(),
    test=examples(9, seed=2),
  )
  assert scored.test == uninterrupted.test
  assert_same(scored.participants, uninterrupted.participants)


def test_a_phase_of_no_epochs_needs_everything_given(tmp_path):
  with pytest.raises(ConfigError, match=r"phase '.*' has epochs=0, but nothing is given for 'stud"):
    train_phase(
      phase(epochs=0, average_decay=None),
      directory=tmp_path,
      devices=jax.local_devices()[:2],
      reporter=Silent(),
    )
