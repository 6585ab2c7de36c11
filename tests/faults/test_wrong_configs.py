"""Hundreds of wrong configs, drawn from the schema: each gives one error line, at once."""

from __future__ import annotations

import collections
import copy
import functools
import time

import hypothesis
import jax
import ml_collections
import pytest
from hypothesis import strategies as st
from rich.console import Console

import jaxkd.train.loop
from jaxkd import methods, models
from jaxkd.data import DATASETS, load
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, run
from tests.test_config import leaves, wrong_values

pytestmark = pytest.mark.faults

EXAMPLES, SECONDS = 600, 5.0
METHODS = (*sorted(methods.METHODS), "kd+at")
TEACHERLESS = ("alone", *(n for n, method in methods.METHODS.items() if method.without_teacher))
# Values beyond device types, invalid in file systems, or with a line break.
BEYOND = {
  int: (2**31, 10**30),
  float: (1e39, 1e300, 1e-300, 10**30 * 10**10),
  str: ("no\0thing", "two\nlines", "\ud800"),
  tuple: ((1e39,), (1e-300,), ("two\nlines",)),
}
# Texts that are not names of a registry, or are paths.
FREE = (("data", "directory"), ("method", "name"))
PATHS = (("teacher", "bundle"), ("teacher", "weights"))

CONTRADICTIONS = {
  "momentum": {"student.nesterov": True, "student.momentum": 0.0},
  "mixup": {"cached_targets": True, "data.mixup": 0.2},
  "views": {"cached_targets": True, "data.flip": True},
  "resized_crop": {"data.crop": 2, "data.resized_crop": 8},
  "crop": {"data.crop": 9},
  "cutout": {"data.cutout": 9},
  "batch_size": {"batch_size": 20, "accumulate": 3},
  "devices": {"devices": 9},
  "not divisible": {"batch_size": 30},
  "per_class": {"data.per_class": 1000},
  "test_per_class": {"data.test_per_class": 1000},
  "unlabelled": {"data.unlabelled": 5},
  "examples are left": {"data.per_class": 100, "data.unlabelled": 5000},
  "validation": {"keep": "best", "data.validation": 0.0},
  "validation=1e-20": {"data.validation": 1e-20},
  "epochs": {"student.epochs": 2**31 - 1},
  "warmup_epochs": {"student.warmup_epochs": 1e30},
  "dropout": {"student.model": "vgg8", "student.dropout": 0.1},
  "images": {"student.model": "imagenet_mobilenetv1"},
}
OF_TEACHERS = {
  "exits": {"teacher.model": "msdnet_small"},
  "teacher.count": {"teacher.count": 2, "teacher.bundle": "one,two,three"},
  "one of them": {"teacher.bundle": "one", "teacher.weights": "two.pth"},
  "teacher_per_class": {"data.teacher_per_class": 1000},
}
OF_METHODS = {
  # A folder and a file that do not exist, for the teacher that a method needs.
  "no model.json": {"teacher.bundle": "nowhere"},
  "no such file": {"teacher.weights": "nowhere.pth"},
}
OF_FIELDS = {
  "ramp": ({"method.ramp": "linear", "method.ramp_epochs": 0.0}, "ramp_epochs"),
  "two_stage": (
    {"method.two_stage": True, "method.ramp": "linear", "method.ramp_epochs": 1.0},
    "ramp",
  ),
  "second_kd_weight": (
    {
      "method.two_stage": True,
      "method.second_kd_weight": 0.0,
      "method.second_label_weight": 0.0,
    },
    "second_kd_weight",
  ),
  "stage_weights": ({"method.stage_weights": tuple(range(1, 40))}, "stage_weights"),
  "teacher_weights": ({"method.teacher_weights": (1.0, 2.0)}, "teacher_weights"),
  "models": ({"method.models": ("student",) * 9}, "models"),
}


def misspelt(draw, name):
  """Return the name with a letter left out, or a very different one."""
  place = draw(st.integers(0, max(0, len(name) - 1)))
  near = name[:place] + name[place + 1 :]
  return draw(st.sampled_from([near + "q", f"{name}_", "something else", "", "x/y"]))


@st.composite
def wrong_configs(draw):
  """(method, kind of mistake, changes, words of which the error contains one)."""
  method = draw(st.sampled_from(METHODS))
  fields = config.fields(method)
  found = [leaf for leaf in leaves(fields) if method not in TEACHERLESS or leaf[0][0] != "teacher"]
  kind = draw(st.sampled_from(["value", "beyond", "field", "missing", "name", "contradiction"]))
  path, field = draw(st.sampled_from(found))
  where = ".".join(path)
  if kind == "value":
    return method, kind, {where: draw(wrong_values(path, field))}, (path[-1], "method")
  if kind == "beyond":
    of_type = [leaf for leaf in found if type(leaf[1].default) in BEYOND]
    path, field = draw(st.sampled_from(of_type))
    value = draw(st.sampled_from(BEYOND[type(field.default)]))
    return method, kind, {".".join(path): value}, (path[-1], "method")
  if kind == "field":
    *sections, name = path
    unknown = misspelt(draw, name)
    hypothesis.assume(unknown not in functools.reduce(dict.__getitem__, sections, dict(fields)))
    return method, kind, {(*sections, unknown): 1}, (repr(unknown),)
  if kind == "missing":
    at = draw(st.sampled_from([path, path[:1]]))
    return method, kind, {".".join(at): None, "": at}, (at[-1], "method")
  if kind == "name":
    return method, kind, *unknown_names(draw, method, found)
  fitting = CONTRADICTIONS if method != "teacher" else {"batch_size": CONTRADICTIONS["batch_size"]}
  if method not in TEACHERLESS:
    fitting = fitting | OF_TEACHERS | OF_METHODS
  if method == "teacher":
    fitting = {n: c for n, c in fitting.items() if not any("student" in p for p in c)}
  own = {path[-1] for path, _ in found if path[0] == "method" and len(path) == 2}
  fitting = fitting | {
    word: changes
    for name, (changes, word) in OF_FIELDS.items()
    if name in own and all(p.partition(".")[2] in own for p in changes)
  }
  word = draw(st.sampled_from(sorted(fitting)))
  return method, kind, fitting[word], (word,)


def unknown_names(draw, method, found):
  """Return a change to an unknown method, model, data set, stage or file, and expected words."""
  used = "student" if method == "teacher" else None
  named = [
    (path, field.default)
    for path, field in found
    if path not in FREE and path[0] != used
    if field.meaning.startswith("a tuple of names") or field.meaning.startswith("a text")
  ]
  path, default = draw(st.sampled_from([*named, (("method", "name"), method)]))
  if path in PATHS:
    return {".".join(path): "no\twhere" if draw(st.booleans()) else "x" * 5000}, (path[-1],)
  known = {"name": DATASETS if path[0] == "data" else METHODS, "model": models.names()}
  known |= {"models": models.names()}
  name = misspelt(draw, draw(st.sampled_from([*known.get(path[-1], ("stage1", "pooled"))])))
  hypothesis.assume(name and name not in known.get(path[-1], ()))
  value = (name,) if isinstance(default, tuple) else name
  return {".".join(path): value}, (repr(name), repr(name.partition("+")[0]), "unknown method")


def changed(settings, changes):
  """Return the settings with other values of any type."""
  tree = copy.deepcopy(settings.to_dict())
  missing = changes.get("")
  for path, value in changes.items():
    *sections, name = path.split(".") if isinstance(path, str) else path
    section = functools.reduce(dict.__getitem__, sections, tree)
    if not missing:
      section[name] = value
    elif path:
      del section[name]
  return ml_collections.ConfigDict(tree)


def settings_for(method, directory):
  settings = config.base_config(method)
  settings.update({"batch_size": 16, "data": {"directory": str(directory)}})
  settings.update({"teacher": {"model": "resnet8_w8"}, "student": {"model": "resnet8_w4"}})
  return settings


@pytest.fixture
def data(tmp_path_factory):
  """`load` with a cache, and the folder of the prepared digits."""
  directory = tmp_path_factory.mktemp("tfds")
  remembering = functools.lru_cache(load)
  remembering("digits", directory=str(directory))
  return remembering, directory


@pytest.fixture
def compiled(monkeypatch):
  """The list of compilation events; mapping a training step is an error."""

  def train(*args, **options):
    raise AssertionError("a step was to be compiled")

  events = []

  def listen(name, seconds, **about):
    if name.endswith("backend_compile_duration"):
      events.append(name)

  monkeypatch.setattr(jaxkd.train.loop.mapping, "map_training_step", train)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def test_every_wrong_config_gives_one_line_at_once(data, compiled, tmp_path, record_property):
  load_data, directory = data
  outcomes, slowest, faults = collections.Counter(), [0.0], []
  record_property("fault", "wrong configs, drawn from the schema of every method")
  for method in METHODS:
    # One-time work of a process: imports, first arrays.
    build.phases(settings_for(method, directory), load_data("digits", directory=str(directory)))

  @hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
  @hypothesis.given(wrong_configs())
  def attempt(drawn):
    method, kind, changes, words = drawn
    workdir = tmp_path / str(sum(outcomes.values()))
    outcomes[kind] += 1
    settings = changed(settings_for(method, directory), changes)
    compiled.clear()
    # Three tries, as another load on the machine may slow down one of them.
    for _ in range(3):
      started = time.monotonic()
      try:
        run.run(settings, workdir, Console(quiet=True), load_data=load_data)
      except ConfigError as error:
        fault = problem_of_message(str(error), words)
      except Exception as error:  # the user would see a traceback
        fault = f"{type(error).__name__}: {error}"
      else:
        fault = "it was accepted"
      seconds = time.monotonic() - started
      if fault or seconds <= SECONDS:
        break
    slowest[0] = max(slowest[0], seconds)
    if seconds > SECONDS:
      fault = fault or f"took {seconds:.1f} s"
    if compiled or workdir.exists():
      fault = fault or f"{len(compiled)} programs were compiled, or {workdir} was written"
    if fault:
      faults.append(f"{method}: {changes}: {fault}"[:500])

  attempt()
  tries = sum(outcomes.values())
  kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))
  record_property("tries", tries)
  record_property(
    "outcome",
    f"{tries - len(faults)} one line each, in at most {slowest[0]:.1f} s ({kinds})",
  )
  assert not faults, "\n".join(faults)
  assert tries >= EXAMPLES


def problem_of_message(message, words):
  """Return what is wrong with an error message; empty if it is one line that names the mistake."""
  if len(message.splitlines()) != 1:
    return f"not one line: {message!r}"
  return "" if any(word in message for word in words) else f"none of {words}: {message}"
