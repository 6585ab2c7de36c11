"""The parts of the Makefile name files that exist, and results lie beside their study."""

import ast
import itertools
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in ROOT.glob("experiments/studies/*/study.mk"))
PARTS = [ROOT / "Makefile", ROOT / "tests/tests.mk", *(folder / "study.mk" for folder in STUDIES)]
TARGETS = [
  (str(path.relative_to(ROOT)), target)
  for path in PARTS
  for target in re.findall(r"^([a-z][a-z-]*):", path.read_text(), flags=re.MULTILINE)
]


def test_every_folder_of_a_study_has_a_part_of_the_makefile():
  folders = {path for path in (ROOT / "experiments/studies").iterdir() if any(path.glob("**/*.py"))}
  assert folders <= set(STUDIES)
  assert {path.name for path in STUDIES} == {
    "accelerator",
    "bench",
    "claims",
    "dry_run",
    "faults",
    "journeys",
    "quantization",
    "tables",
  }


def test_no_target_is_defined_twice():
  names = [target for _, target in TARGETS]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize(("part", "target"), TARGETS)
def test_commands_of_a_target_name_files_that_exist(part, target, tmp_path):
  command = ["make", "-n", target, f"VENV={tmp_path}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  words = done.stdout.split()
  for word in words:
    if re.fullmatch(r"(experiments|configs|tests)/[\w/]+\.py", word):
      assert (ROOT / word).is_file(), word
  for flag, path in itertools.pairwise(words):
    if flag == "--output" and path.startswith("experiments/"):
      assert (ROOT / path).exists(), path


def test_files_of_the_study_of_faults_exist():
  tree = ast.parse((ROOT / "experiments/studies/faults/faults.py").read_text())
  [chosen] = [
    ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_CHOSEN"
  ]
  for name in chosen:
    path, _, test = name.partition("::")
    assert (ROOT / path).exists(), name
    assert f"def {test}" in (ROOT / path).read_text() if test else True, name
