"""Runs on data of the user's own: from configs, and the examples."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from rich.console import Console

from jaxkd.commands import evaluate
from jaxkd.errors import ConfigError
from jaxkd.experiment.config import base_config
from jaxkd.experiment.run import refuse_other_run, run
from jaxkd.export import scores
from jaxkd.export.bundles import load_bundle
from tests.data.picture_folders import picture, write_split

ROOT = pathlib.Path(__file__).parents[1]
FAST = {"teacher": "mlp", "student": "mlp"}


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def folder_config(path, **fields):
  config = base_config("kd")
  config.batch_size = 8
  config.data.update({"name": f"folder:{path}", "image_size": 6, **fields})
  for network in (config.teacher, config.student):
    network.model, network.epochs, network.schedule = "mlp", 2, "constant"
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("pictures")
  write_split(root / "own", count=20)
  for seed in range(7):
    (root / "extra").mkdir(exist_ok=True)
    picture(seed % 3, size=(20, 12), seed=seed).save(root / "extra" / f"{seed}.jpg")
  return root


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "own"
  config = folder_config(folder / "own", unlabelled_folder=str(folder / "extra"))
  console = Console(record=True, width=200)
  return config, workdir, run(config, workdir, console), console.export_text()


def test_a_run_takes_a_folder_and_unlabelled_pictures(folder, finished):
  _, _, summary, text = finished
  examples = {name: row["examples"] for name, row in summary["stages"].items()}
  assert examples == {"teacher": 43, "alone": 43, "distilled": 50}
  assert (
    f"folder:{folder}/own: 3 classes (cat, dog, élan); 43 training, 7 unlabelled, 5 validation and "
    "12 test images of 6x6x3"
  ) in text


def test_bundles_have_the_classes_and_are_scored_as_in_the_run(finished):
  _, workdir, summary, _ = finished
  _, description = load_bundle(workdir / "bundles/distilled/student")
  assert description["class_names"] == ["cat", "dog", "élan"]
  assert description["data_options"] == {"image_size": 6}
  rows = evaluate.scored(workdir, None, None, 64)
  for stage, row in summary["stages"].items():
    predictor = "teacher" if stage == "teacher" else "student"
    assert rows[f"{stage}/{predictor}"]["accuracy"] == pytest.approx(row["accuracy"])


def test_a_bundle_is_scored_on_another_folder_with_the_same_classes_alone(finished, tmp_path):
  _, description = load_bundle(finished[1] / "bundles/distilled/student")
  write_split(tmp_path / "same", count=5, size=(30, 20))
  data = scores.data_of(description, f"folder:{tmp_path}/same")
  assert data.image_shape == (6, 6, 3) and data.validation is None
  write_split(tmp_path / "other", classes=("cat", "cow", "dog"), count=5)
  with pytest.raises(ConfigError, match="class 1 is 'cow', and the network's 'dog'"):
    scores.data_of(description, f"folder:{tmp_path}/other")
  write_split(tmp_path / "fewer", classes=("cat", "dog"), count=5)
  with pytest.raises(ConfigError, match="2 of them, and the network has 3"):
    scores.data_of(description, f"folder:{tmp_path}/fewer")


def test_work_directories_of_earlier_versions_are_accepted(finished, folder, tmp_path):
  config = folder_config(folder / "own", image_size=0)
  stored = json.loads((finished[1] / "config.json").read_text())
  stored["data"] |= {"image_size": 0, "unlabelled_folder": ""}
  for field in ("image_size", "test", "unlabelled_folder"):
    del stored["data"][field]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  refuse_other_run(config, tmp_path)
  config.data.image_size = 6
  with pytest.raises(ConfigError, match=r"data\.image_size=0 there, 6 asked"):
    refuse_other_run(config, tmp_path)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"name": "folder:/no/where"}, "folder '/no/where' does not exist"),
    ({"name": "foldr:/x"}, "unknown prefix of a data set 'foldr': did you mean 'folder'"),
    ({"image_size": 5000}, "data.image_size=5000: expected an integer >= 0 and <= 4096"),
    ({"test": 0.95}, "data.test=0.95: expected a number >= 0 and <= 0.9"),
    ({"unlabelled_folder": "/no/where"}, "folder '/no/where' does not exist"),
    ({"name": "digits", "test": 0.5}, "test=0.5: expected none, as digits has a test split"),
  ],
)
def test_wrong_fields_leave_no_work_directory(folder, tmp_path, fields, words):
  config = folder_config(folder / "own")
  config.data.update(fields)
  with pytest.raises(ConfigError) as caught:
    run(config, tmp_path / "run", Console(quiet=True))
  assert words in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


EXAMPLES = sorted((ROOT / "experiments/examples").glob("own_*.py"))


@pytest.mark.long
def test_example_of_a_folder(folder, tmp_path):
  example = load(ROOT / "experiments/examples/own_folder.py")
  summary = example.main(folder / "own", tmp_path / "run", image_size=6, epochs=1, **FAST)
  assert set(summary["stages"]) == {"teacher", "alone", "distilled"}


@pytest.mark.long
def test_example_of_arrays(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  images = 60 * labels[:, None, None] + rng.integers(0, 60, (60, 6, 6))
  np.savez(tmp_path / "own.npz", images=images / 255, labels=labels)
  example = load(ROOT / "experiments/examples/own_arrays.py")
  summary = example.main(tmp_path / "own.npz", tmp_path / "run", epochs=20, **FAST)
  assert summary["stages"]["distilled"]["accuracy"] > 0.7


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_at_most_40_lines(path):
  assert len(path.read_text().splitlines()) <= 40
