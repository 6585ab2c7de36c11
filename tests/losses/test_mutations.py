"""The mutations of tests/mutate.py apply to the code and name tests that exist."""

from __future__ import annotations

import pytest

from tests.mutate import MUTATIONS, ROOT, file_of_tests, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_mutation_applies_to_the_code_and_names_existing_tests(mutation):
  path, text = mutated(mutation)
  assert text != path.read_text()
  assert (ROOT / file_of_tests(mutation)).is_file()
  assert not mutation.parity or (ROOT / f"tests/golden/{mutation.parity}.npz").is_file()
