"""Values that are not finite are found, named, never applied and never saved; policies follow."""

import io
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from rich.console import Console

from jaxkd.report import MetricsFile, ProgressBar
from jaxkd.runtime import mapping
from jaxkd.runtime.signals import Interrupted, Interruption
from jaxkd.train import Silent, TrainOptions, create_state, step_guard, train_phase
from jaxkd.train.nonfinite import Diverged, NonFinite, Rollback, StepMonitor
from jaxkd.train.packed_metrics import pack
from jaxkd.train.step import StepOptions, monitored_step
from jaxkd.train.step_guard import Learner
from jaxkd.types import Aux, Scheme, Terms
from tests.methods.one_step import assert_same
from tests.tiny import batch, examples, phase

ROOT = pathlib.Path(__file__).parents[2]


def two_learners(poisons=None, *, device=None):
  """Two vectors as learners: "first" approaches an image's mean, "second" minimises its term.

  The second's term is a logarithm that has no value above 1.5: the rate may be too high. `poisons`
  maps steps to what is not finite there, on one device or on all.
  """
  poisons = poisons or {}

  def loss(learning, participants, data, targets, context):
    def hit(kind):
      steps = [step for step, poison in poisons.items() if poison == kind]
      now = jnp.isin(context.step, jnp.asarray(steps or [-1]))
      here = device is None or lax.axis_index(mapping.AXIS_NAME) == device
      return now & here

    target = data.inputs.mean()
    first, second = learning["first"]["w"], learning["second"]["w"]
    one = 0.1 * jnp.sum((first - target) ** 2)
    two = jnp.sum(second**2 / 2 - jnp.log(1.5 - second)) * jnp.where(hit("term"), jnp.nan, 1)
    # The root of 0 is 0, its gradient is not.
    two += jnp.sqrt(jnp.where(hit("gradient"), 0, 1) * (1 + jnp.sum(second**2))) * 1e-3
    large = jnp.where(hit("large gradient"), 1e25, 0) + jnp.where(hit("update"), 1e15, 0)
    two += jnp.sum(second - lax.stop_gradient(second)) * large
    statistics = participants["first"]["batch_stats"]
    mean = jnp.where(hit("statistics"), jnp.inf, 0.9 * statistics["mean"] + 0.1 * target)
    state = {"first": {"batch_stats": {"mean": mean, "count": statistics["count"] + 1}}}
    share = jnp.where(hit("metric"), jnp.nan, 1.0)
    terms = {"one": Terms(feature=one), "two": Terms(logit=two)}
    return one + two, Aux(terms, {"share": (share, jnp.float32(1))}, state)

  def init(rng, data):
    statistics = {"mean": jnp.float32(0), "count": jnp.int32(0)}
    return {
      "first": {"params": {"w": jnp.ones(3)}, "batch_stats": statistics},
      "second": {"params": {"w": 0.5 * jnp.ones(2)}},
      "frozen": {"params": {"w": jnp.ones(2)}},
    }

  return Scheme(
    init=init,
    targets=lambda participants, data: None,
    loss=loss,
    predict=lambda participants, images: {},
    learners=("first", "second"),
    export=lambda participants: {},
  )


FAULTS = {
  "term": {"first": 0, "second": step_guard.GRADIENT | step_guard.UPDATE},
  "gradient": {"first": 0, "second": step_guard.GRADIENT | step_guard.UPDATE},
  # Finite, but its square overflows float32.
  "large gradient": {"first": 0, "second": step_guard.GRADIENT | step_guard.UPDATE},
  "update": {"first": 0, "second": step_guard.UPDATE},
  "statistics": {"first": step_guard.STATISTICS, "second": 0},
  "metric": {"first": 0, "second": 0},
}
# Every second step is poisoned.
POISONS = {2 * number + 1: poison for number, poison in enumerate(FAULTS)}
FINE = {"first": 0, "second": 0}


def steps(device_count, accumulate, poisons):
  """The states from the first to the last of 13 steps on several devices, and their results."""
  # Updates by large gradients overflow float32.
  out_of_bounds = optax.stateless(
    lambda updates, _: jax.tree.map(lambda u: jnp.where(abs(u) > 1e9, 1e30 * u, u), updates)
  )
  optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), out_of_bounds)
  scheme = two_learners(poisons, device=device_count - 1)
  state = create_state(
    scheme, optimizer, jax.random.key(0), batch(), untrained=("frozen",), average=True
  )
  chosen = jax.local_devices()[:device_count]
  options = StepOptions(mapping.AXIS_NAME, accumulate, average_decay=0.9)
  step = monitored_step(scheme, optimizer, lambda keys, data: data, options)
  mapped = mapping.map_training_step(step, chosen)
  data = mapping.shard(jax.tree.map(np.asarray, batch(16)), chosen)
  state = mapping.replicate(state, chosen)
  states, results = [mapping.host_copy(state)], []
  for _ in range(13):
    state, monitored = mapped(state, data)
    for leaf in jax.tree.leaves(state):
      one, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
      assert all(np.array_equal(one, other, equal_nan=True) for other in others)
    states.append(mapping.host_copy(state))
    results.append(jax.device_get(monitored))
  return states, results


@pytest.mark.parametrize(
  ("device_count", "accumulate"), [(4, 1), (2, 2), pytest.param(1, 1, marks=pytest.mark.long)]
)
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(device_count, accumulate):
  states, results = steps(device_count, accumulate, POISONS)
  for step, (before, after) in enumerate(itertools.pairwise(states)):
    assert after.step == step + 1
    poison = POISONS.get(step)
    faults = {name: learner.faults for name, learner in results[step][1].items()}
    assert faults == (FAULTS[poison] if poison else FINE), poison
    if poison:
      for field in ("participants", "optimizer", "average"):
        assert_same(getattr(before, field), getattr(after, field))
    else:
      assert np.all(before.participants["second"]["params"]["w"] != 0)
      moved = jax.tree.map(np.not_equal, before.average, after.average)
      assert all(np.all(leaf) for leaf in jax.tree.leaves(moved))
  assert states[-1].participants["first"]["batch_stats"]["count"] == 7 * accumulate


def compare_with_steps_without_a_guard():
  """Raise an AssertionError unless they are equal, bit by bit."""
  guarded, _ = steps(2, 1, {})
  with mock.patch.object(step_guard, "select", lambda finite, after, before: after):
    plain, _ = steps(2, 1, {})
  assert_same(guarded, plain)


def test_finite_steps_equal_those_without_a_guard():
  # In a process of its own, without `compile_fast`, whose programs differ in the last bits.
  program = "from tests.train import test_nonfinite as t; t.compare_with_steps_without_a_guard()"
  options = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | options
  subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True)


class Recorder(Silent):
  """Keeps messages and losses, and may interrupt."""

  def __init__(self, stop_after=None):
    self.lines, self.losses = [], []
    self._stop_after = stop_after

  def message(self, line):
    self.lines.append(line)

  def stepped(self, metrics, images):
    self.losses.append(metrics["loss"])
    if len(self.losses) == self._stop_after:
      raise KeyboardInterrupt


SMALL = {"examples": examples(16), "reported": "", "optimizer": optax.sgd(0.1)}


def train(
  directory,
  reporter=None,
  policy=None,
  *,
  poisons=None,
  seconds=1e9,  # a checkpoint is due by time where a test says so
  together=1,
  stop=None,
  **changes,
):
  """Four epochs of two steps."""
  return train_phase(
    phase(**{**SMALL, "scheme": two_learners(poisons), "untrained": ("frozen",), **changes}),
    directory=directory,
    devices=jax.local_devices()[:2],
    reporter=reporter or Silent(),
    options=TrainOptions(
      checkpoint_seconds=seconds,
      steps_per_dispatch=together,
      nonfinite=policy or NonFinite(),
    ),
    stop=stop,
  )


def saved(directory):
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


NAN = np.float32("nan")


@pytest.mark.parametrize(
  ("metrics", "found", "named"),
  [
    ({"kd_logit": NAN}, {"student": 6}, "the term kd_logit, the gradient of 'student'"),
    # Of several at once, the largest of the step before.
    (
      {"at_feature": NAN, "kd_logit": NAN},
      {"student": 0},
      "the term kd_logit, the term at_feature",
    ),
    ({}, {"connector": 2, "student": 2}, "the gradient of 'student' and 'connector'"),
    ({"loss": np.inf}, {"student": 0}, "loss"),
    ({"share": NAN}, {"student": 0}, "share"),
    # Statistics are a peer's own; they come before effects on the other.
    ({}, {"peer_0": 2, "peer_1": 3}, "the statistics of 'peer_1'"),
    ({}, {"student": 4}, "the update of 'student'"),
  ],
)
def test_the_cause_is_named_first(metrics, found, named):
  progress = {"sums": {}, "rows": []}
  monitor = StepMonitor(phase(**SMALL), NonFinite(), progress, Silent(), done=5, frozen={})
  usual = {"loss": 2.5, "kd_logit": 2.0, "at_feature": 0.5, "share": 1.0, "gradient_norm": 1.0}
  for own, faults in (({}, dict.fromkeys(found, 0)), (metrics, found)):
    pairs = {name: (np.float32(x), np.float32(1)) for name, x in {**usual, **own}.items()}
    norms = {"student": 7.0, "connector": 3.0}
    monitor.push(
      pack(
        (pairs, {name: Learner(np.int32(x), norms.get(name, 1.0)) for name, x in faults.items()})
      )
    )
  with pytest.raises(Diverged) as caught:
    monitor.drain()
  message = str(caught.value)
  assert message.startswith(
    f"phase 'alone': step 7 of 8 is not finite: {named} (before, the largest were term kd_logit, 2"
  )
  assert ("and gradient student, 7)" in message) == ("connector" in found)
  assert "; nothing of it was kept. Try " in message
  for way in ("lower learning_rate", "clip_norm", "nonfinite=skip", "nonfinite=rollback"):
    assert way in message


def test_stop_saves_nothing_afterwards_and_another_policy_resumes_from_there(tmp_path):
  poisons = {4: "term"}
  with pytest.raises(Diverged, match=r"step 5 of 8 .* two_logit, the gradient of 'second' \("):
    train(tmp_path, seconds=0.0, poisons=poisons)
  assert saved(tmp_path) == [3, 4]
  skip = NonFinite("skip")
  gone_on = train(tmp_path, policy=skip, poisons=poisons)
  whole = train(tmp_path / "whole", policy=skip, poisons=poisons)
  assert_same(gone_on.participants, whole.participants)
  assert gone_on.rows == whole.rows


@pytest.mark.parametrize("together", [pytest.param(1, marks=pytest.mark.long), 2])
def test_skipped_steps_count_in_no_mean_and_are_reported_once(tmp_path, together):
  recorder = Recorder()
  poisons = {2: "gradient", 5: "term"}
  finished = train(tmp_path, recorder, NonFinite("skip"), poisons=poisons, together=together)
  assert [row.get("skipped") for row in finished.rows] == [None, 1, 1, None]
  [line] = recorder.lines
  assert line.startswith("phase 'alone': step 3 of 8 is not finite: the gradient of 'second' (")
  assert "such steps are skipped" in line
  losses = np.asarray(recorder.losses)
  assert np.flatnonzero(np.isnan(losses)).tolist() == [5]
  means = [losses[:2].mean(), losses[3], losses[4], losses[6:].mean()]
  np.testing.assert_allclose([row["train"]["loss"] for row in finished.rows], means, rtol=1e-6)


def test_an_epoch_of_skipped_steps_is_an_error(tmp_path):
  poisons = dict.fromkeys(range(3, 8), "term")
  with pytest.raises(Diverged, match=r"step 6 of 8 .*two_logit.*, as were all 2 of this epoch"):
    train(tmp_path, policy=NonFinite("skip"), poisons=poisons)


@pytest.mark.long
def test_policies_do_not_differ_if_all_is_finite(tmp_path):
  one, other = (train(tmp_path / p, policy=NonFinite(p)) for p in ("stop", "rollback"))
  assert_same(one.participants, other.participants)
  assert one.rows == other.rows
  assert all(row.keys() == {"stage", "epoch", "step", "train"} for row in one.rows)


# The first step goes to -2.5, the second to 2, of which the third has no logarithm.
TOO_FAST = {"optimizer": optax.sgd(2.0), "policy": NonFinite("rollback")}


@pytest.mark.parametrize("together", [1, pytest.param(2, marks=pytest.mark.long)])
def test_rollback_restarts_at_a_lower_rate_and_drops_the_epochs_between(tmp_path, together):
  class Both(MetricsFile, Recorder):
    def __init__(self, path):
      MetricsFile.__init__(self, path)
      Recorder.__init__(self)

  both = Both(tmp_path / "metrics.jsonl")
  both.phase_started("before", 1, [{"stage": "before", "epoch": 1}])
  finished = train(tmp_path / "phase", both, together=together, **TOO_FAST)
  [line] = both.lines
  assert line.startswith("phase 'alone': step 3 of 8 is not finite: the term two_logit (")
  assert line.endswith("back to step 0, with 0.5 times the learning rate (rollback 1 of at most 3)")
  slower = train(tmp_path / "slower", together=together, optimizer=optax.sgd(1.0))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    finished.participants,
    slower.participants,
  )
  assert [row.pop("rollbacks") for row in finished.rows] == [1, 1, 1, 1]
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row.get("epoch") for row in rows] == [1, 1, 2, 3, 4]
  assert [row["step"] for row in finished.rows] == [2, 4, 6, 8]


def test_a_phase_stopped_in_a_rollback_stops_where_it_says(tmp_path):
  class StopRequest(Silent):
    stop = Interruption()

    def rolled_back(self, phase, rows):
      self.stop.request(signal.SIGTERM)

  reporter = StopRequest()
  with pytest.raises(Interrupted, match=r"^alone, after update 1 of 8$"):
    train(tmp_path, reporter, stop=reporter.stop, **TOO_FAST)
  assert saved(tmp_path) == [1]


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
  """Result and messages of a phase that saves at every step; its last checkpoint diverges again."""
  recorder = Recorder()
  finished = train(tmp_path_factory.mktemp("whole"), recorder, seconds=0.0, **TOO_FAST)
  return finished, recorder.lines


@pytest.mark.long
def test_a_checkpoint_that_diverges_again_is_replaced_by_the_one_before(rolled_back):
  finished, lines = rolled_back
  assert [line.split("; ")[1] for line in lines] == [
    "back to step 2, with 0.5 times the learning rate (rollback 1 of at most 3)",
    "back to step 1, with 0.25 times the learning rate (rollback 2 of at most 3)",
  ]
  assert [row["step"] for row in finished.rows] == [2, 4, 6, 8]
  assert finished.rows[-1]["rollbacks"] == 2


@pytest.mark.long
@pytest.mark.parametrize("updates", [2, 3, 5])
def test_a_rollback_survives_an_interruption_in_the_same_bits(tmp_path, rolled_back, updates):
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, Recorder(stop_after=updates), seconds=0.0, **TOO_FAST)
  resumed = train(tmp_path, seconds=0.0, **TOO_FAST)
  assert_same(resumed.participants, rolled_back[0].participants)
  assert resumed.rows == rolled_back[0].rows


def test_a_rollback_without_progress_restores_an_older_checkpoint():
  lost = {"failed_after": 3, "back_to": 2}
  assert Rollback("", 3).below({}) == math.inf
  assert Rollback("", 3).below(lost) == 2
  assert Rollback("", 4).below(lost) == math.inf


def test_the_progress_bar_follows_a_rollback():
  bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True))
  bar.phase_started("alone", 8, [])
  row = {"stage": "alone", "epoch": 1, "step": 2, "train": {"loss": 1.0}}
  for _ in range(5):
    bar.stepped({"loss": 1.0}, 8)
  bar.rolled_back("alone", [row])
  assert [task.completed for task in bar._progress.tasks] == [2]
  bar.rolled_back("alone", [])
  assert [task.completed for task in bar._progress.tasks] == [0]
  bar.phase_ended("alone")


def test_rollbacks_come_to_an_end(tmp_path):
  changes = {**TOO_FAST, "policy": NonFinite("rollback", factor=0.9, most=2)}
  with pytest.raises(Diverged, match=r"step \d of 8 .* rolled back 2 times, to 0.81 times the lea"):
    train(tmp_path, **changes)


def test_frozen_weights_that_are_not_finite_are_not_saved(tmp_path):
  """All arrays of a checkpoint are checked, those that enter no loss too."""
  given = {"frozen": {"params": {"w": np.asarray([1.0, np.inf], np.float32)}}}
  with pytest.raises(Diverged, match=r"participants/frozen/params/w is not finite and not saved"):
    train_phase(
      phase(**SMALL, scheme=two_learners(), given=given),
      directory=tmp_path,
      devices=jax.local_devices()[:2],
      reporter=Silent(),
      options=TrainOptions(checkpoint_seconds=0.0),
    )
  assert saved(tmp_path) == []


def test_a_teacher_that_is_not_finite_is_named_when_a_step_is_not(tmp_path):
  monitor = StepMonitor(
    phase(**SMALL),
    NonFinite(),
    {"sums": {}, "rows": []},
    Silent(),
    done=0,
    frozen={"teacher": {"params": {"w": jnp.asarray([1.0, jnp.nan])}}},
  )
  monitor.push(pack(({"kd_logit": (NAN, np.float32(1))}, {"student": Learner(np.int32(2), NAN)})))
  with pytest.raises(
    Diverged,
    match=r"finite: the weights of 'teacher', which does not learn, the term kd_logit, the gradien",
  ):
    monitor.drain()
