"""The number of files that run from the command line to the first update stays bounded."""

import pytest

from tests.reading_path import CONFIG, LAST, reading_path, report

# What is measured, so that it does not grow unseen; the aim is 35.
MOST_FILES = 90


@pytest.mark.long
def test_first_update_runs_through_a_bounded_number_of_files():
  path = reading_path()
  functions = [name for names in path.values() for name in names]
  assert {"jaxkd/commands/training.py", CONFIG.partition(":")[0]} <= set(path)
  assert LAST in functions
  assert not [name for name in functions if name.endswith(">")], "no lambdas, no comprehensions"
  assert len(path) <= MOST_FILES, report(path)
