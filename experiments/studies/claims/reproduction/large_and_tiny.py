"""The lecture's opening claim: regularisation helps a large network and hurts a tiny one."""

from __future__ import annotations

from reproduction.costs import cost
from reproduction.results import DIGITS, FASHION, Claim, Row, Runs, paired

# Setting -> the runs of the large and of the tiny network; "_strong" is with regularisation.
_NETWORKS = {FASHION: ("large", "tiny"), DIGITS: ("large", "alone")}


def _regularised(runs: Runs) -> list[Row]:
  rows = []
  for setting, (large, tiny) in _NETWORKS.items():
    settings = runs.settings(setting, f"{large}_strong")
    what = (
      f"cutout {settings.data.cutout}, mixup {settings.data.mixup:g}, "
      f"dropout {settings.student.dropout:g}"
    )
    accuracies = {
      run: runs.accuracies(setting, run)
      for run in (large, f"{large}_strong", tiny, f"{tiny}_strong")
    }
    rows += [
      paired(
        f"{setting}, large network: with strong augmentation and dropout - without",
        accuracies[f"{large}_strong"],
        accuracies[large],
        note=f"{what}; {cost(runs, setting, large)}",
      ),
      paired(
        f"{setting}, tiny network: without - with strong augmentation and dropout",
        accuracies[tiny],
        accuracies[f"{tiny}_strong"],
        note=f"{what}; {cost(runs, setting, tiny)}",
      ),
    ]
  return rows


CLAIMS = (
  Claim(
    15,
    "Strong augmentation and dropout help a large network and hurt a tiny one.",
    "the lecture's opening",
    tuple(_NETWORKS),
    _regularised,
  ),
)
