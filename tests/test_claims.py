"""The study of claims: comparisons, choice of hyperparameters, tables, and the written results."""

import importlib
import json
import pathlib
import re
import sys

import pytest

from jaxkd import report
from jaxkd.errors import ConfigError
from jaxkd.experiment import overrides

ROOT = pathlib.Path(__file__).parent.parent
WRITTEN = ROOT / "experiments/studies/claims/results"


@pytest.fixture(scope="module")
def reproduction():
  """The modules that experiments/studies/claims/claims.py imports, by name."""
  sys.path.insert(0, str(ROOT / "experiments/studies/claims"))
  names = (
    "exits",
    "large_and_tiny",
    "offline",
    "planning",
    "results",
    "search",
    "tables",
    "together",
  )
  yield {name: importlib.import_module(f"reproduction.{name}") for name in names}
  sys.path.remove(str(ROOT / "experiments/studies/claims"))


@pytest.fixture(scope="module")
def config():
  return overrides.load_module(ROOT / "experiments/studies/claims/config.py")


def finished(folder, accuracies, predictor="student", stage="distilled"):
  """Write the accuracies of a finished run."""
  test = {name: {"accuracy": value} for name, value in accuracies.items()}
  folder.mkdir(parents=True)
  stages = {"teacher": {"predictor": ""}, stage: {"predictor": predictor, "test": test}}
  (folder / "summary.json").write_text(json.dumps({"stages": stages}))


@pytest.fixture
def runs(reproduction, config, tmp_path):
  """Three seeds; in each, KD and SimKD are one point above the student alone, AT two below."""
  everything = reproduction["results"].Runs(
    tmp_path, {"fashion": (0, 1, 2)}, lambda setting, run: None, config
  )
  for seed, level in enumerate((0.70, 0.75, 0.85)):
    for run in config.RUNS["fashion"]:
      gain = 0.01 if run.startswith("kd_") or run == "simkd" else -0.02 if run == "at" else 0.0
      finished(everything.folder("fashion", run, seed), {"student": level + gain})
  return everything


def test_gains_are_paired_by_seed_and_signed_as_claimed(reproduction, runs):
  rows = reproduction["offline"]._kd(runs)
  gain = rows[0]
  assert gain.compared == "KD at T=1 - student alone"
  # Levels differ by 15 points between seeds, gains do not.
  assert (gain.difference, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))
  assert (gain.seeds, gain.verdict) == (3, "holds")
  effect = rows[-1]
  assert effect.compared == "KD at T=16 - KD at T=1"
  assert effect.verdict == "not shown"
  found = {row.compared: row.verdict for row in reproduction["offline"]._features(runs)}
  assert found["attention transfer (activations) - student alone"] == "contradicted"


def test_worked_examples_agree_to_the_last_digit(reproduction):
  rows = reproduction["offline"]._softmax(None)
  assert [row.verdict for row in rows] == ["holds"] * 3
  assert all(0 < row.difference <= 0.0005 for row in rows)


def test_mean_peer_is_the_mean_of_all_peers(reproduction, config, tmp_path):
  everything = reproduction["results"].Runs(tmp_path, {"digits": (4,)}, None, config)
  folder = everything.folder("digits", "dml", 4)
  finished(folder, {"peer_0": 0.5, "peer_1": 0.75, "ensemble": 1.0}, predictor="peer_0")
  assert everything.accuracies("digits", "dml", "mean peer") == [0.625]
  assert everything.accuracies("digits", "dml") == [0.5]
  assert everything.accuracies("digits", "dml", "ensemble") == [1.0]


def test_every_exit_is_compared_and_small_training_sets_with_large(reproduction, config, tmp_path):
  everything = reproduction["results"].Runs(tmp_path, {"fashion": (0, 1)}, None, config)
  for seed in (0, 1):
    for size, gain in zip(config.SIZES, (0.03, 0.02, 0.0), strict=True):
      for run, more in ((f"exits_{size}", gain), (f"exit_wise_{size}", 0.0)):
        # Eleven exits, so that exit 10 comes last and not second.
        accuracies = {f"exit_{k}": 0.5 + 0.01 * k + (more if k == 1 else 0.0) for k in range(11)}
        folder = everything.folder("fashion", run, seed)
        finished(folder, {**accuracies, "ensemble": 0.9}, predictor="exit_10")
  rows = {row.compared: row for row in reproduction["exits"]._by_size(everything)}
  assert len(rows) == 3 * 11 + 10
  assert rows["exit 1, 20 images per class: distilled - labels alone"].difference == pytest.approx(
    3
  )
  assert rows["exit 2, 20 images per class: distilled - labels alone"].difference == 0
  assert "exit 10, the last, 500 images per class: distilled - labels alone" in rows
  shrinks = rows["exit 1: what distillation gains at 20 - at 500 images per class"]
  assert (shrinks.difference, shrinks.verdict) == (pytest.approx(3), "holds")


def test_every_run_is_planned_for_every_seed_with_chosen_fields(reproduction, config, tmp_path):
  runs, planned = reproduction["planning"].claimed(config, tmp_path)
  assert len({run.folder for run in planned}) == len(planned)
  expected = sum(len(config.SEEDS[setting]) * len(config.RUNS[setting]) for setting in config.RUNS)
  assert len(planned) == 1 + expected
  by_folder = {run.folder: run for run in planned}
  simkd = by_folder[runs.folder("fashion", "simkd", 3)]
  assert simkd.settings.seed == 3
  assert simkd.after == (runs.teacher,)
  assert f"learning_rate={simkd.settings.method.learning_rate}" in config.CHOSEN["fashion"]["simkd"]
  assert not by_folder[runs.folder("digits", "dml", 3)].after


def test_quick_runs_are_short(reproduction, config, tmp_path):
  _, planned = reproduction["planning"].claimed(config, tmp_path, quick=True)
  _, whole = reproduction["planning"].claimed(config, tmp_path)
  assert len(planned) < len(whole)
  images = [
    run.settings.student.epochs * (run.settings.data.per_class or 3000) for run in planned[1:]
  ]
  assert max(images) <= 500


def test_runs_about_contradicted_claims_have_chosen_fields_and_other_seeds(
  reproduction, config, tmp_path
):
  asked, planned = reproduction["planning"].questions(config, tmp_path)
  assert len(planned) == 1 + sum(len(f) for tried in asked.values() for f in tried.values())
  by_folder = {run.folder: run.settings for run in planned}
  [*_, three] = asked["fashion", "exits_constant"]["temperature=3.0"]
  settings = by_folder[three]
  assert (settings.method.temperature, settings.method.adapt_temperature) == (3.0, False)
  chosen = config.get_config("multi_exit@fashion")
  assert settings.student.epochs == chosen.student.epochs
  for setting, seeds in config.WHY_SEEDS.items():
    assert not set(seeds) & set(config.SEEDS[setting])


def test_every_predictor_has_a_validation_accuracy(reproduction, tmp_path):
  folder = tmp_path / "run"
  finished(folder, {"exit_0": 0.25, "student": 0.75})
  scores = {"exit_0": {"accuracy": 0.5}, "student": {"accuracy": 1.0}}
  row = {"stage": "distilled", "validation": scores}
  (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  text = reproduction["search"].every_predictor({("fashion", "byot"): {"": [folder]}})
  assert text.splitlines()[-1] == "| fashion | byot | as chosen | exit_0 50.00; student 100.00 |"


def test_run_without_chosen_hyperparameters_is_refused(reproduction, config, tmp_path, monkeypatch):
  monkeypatch.delitem(config.CHOSEN["fashion"], "simkd")
  with pytest.raises(ConfigError, match=r"CHOSEN\['fashion'\] has no 'simkd'"):
    reproduction["planning"].claimed(config, tmp_path)


def test_chosen_hyperparameters_are_best_by_validation(reproduction, config):
  tried = json.loads((WRITTEN / "claims_search.json").read_text())
  for setting, runs in config.SEARCH.items():
    assert set(config.CHOSEN[setting]) == set(config.RUNS[setting]) == set(runs)
    for run, candidates in runs.items():
      assert set(tried[setting][run]) == set(candidates)
      assert config.CHOSEN[setting][run] == reproduction["search"].best(tried[setting][run]), run
  temperatures = {
    f"kd_t{t}": max(tried["fashion"][f"kd_t{t}"].values()) for t in config.TEMPERATURES
  }
  assert reproduction["search"].best(temperatures) == config.KD


def test_every_claim_has_rows_whose_verdicts_follow_from_the_intervals(reproduction):
  rows = json.loads((WRITTEN / "claims.json").read_text())
  assert {row["number"] for row in rows} == set(range(1, 16))
  for row in rows:
    low, high = row["interval"]
    assert low <= row["difference"] <= high
    assert row["verdict"] == report.verdict(low, high)
    assert row["seeds"] >= 5 or low == high


def test_every_row_of_the_json_file_is_in_the_tables():
  rows = json.loads((WRITTEN / "claims.json").read_text())
  lines = (WRITTEN / "claims.md").read_text().splitlines()
  found = [line for line in lines if re.search(r"\| (holds|not shown|contradicted) \|$", line)]
  assert [line.split(" | ")[0].removeprefix("| ") for line in found] == [
    r["compared"] for r in rows
  ]
  for picture in ("offline", "together", "exits", "budget", "features"):
    assert (WRITTEN / f"claims_{picture}.png").exists()
