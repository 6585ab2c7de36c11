"""Files and functions stay small enough to read."""

from tests.structure import ROOT, parameters, sources

# Hyperparameters of losses count beside: each has a default and a meaning of its own.
HYPERPARAMETERS = {"simkd"}
MOST_PARAMETERS = 8
MOST_LINES = 350


def test_no_function_outside_losses_has_more_than_eight_parameters():
  long = {
    f"{path.relative_to(ROOT)}:{name}": count
    for path in sources(ROOT)
    if path.parent.name != "losses"
    for name, count in parameters(path)
    if count > MOST_PARAMETERS and name not in HYPERPARAMETERS
  }
  assert not long


def test_no_file_has_more_than_350_lines():
  lengths = {
    str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(ROOT)
  }
  assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
