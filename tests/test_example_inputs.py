"""The examples of inputs that are no images run: teacher and student learn, and they are short."""

from pathlib import Path

import pytest

from tests.test_examples import FOLDER, OF_INPUTS, load

# Whole runs.
pytestmark = pytest.mark.long

# Least accuracy of teacher and student: chance is 1/2, 1/12 and 1/3; the language's limit is 1/2.
LEAST = {
  "text_classification": (0.85, 0.85),
  "language_model": (0.4, 0.3),
  "segmentation": (0.6, 0.5),
}


@pytest.mark.parametrize("name", sorted(OF_INPUTS))
def test_teacher_and_student_learn(name, tmp_path):
  results = load(FOLDER / f"{name}.py").main(tmp_path)
  reached = [results[phase].test["student"]["accuracy"] for phase in ("teacher", "student")]
  assert all(found > least for found, least in zip(reached, LEAST[name], strict=True)), reached
  assert (
    results["student"].rows[-1]["train"]["kd_logit"]
    < (results["student"].rows[0]["train"]["kd_logit"])
  )


@pytest.mark.parametrize("name", sorted(OF_INPUTS))
def test_file_has_at_most_40_lines(name):
  assert len(Path(FOLDER / f"{name}.py").read_text().splitlines()) <= 40
