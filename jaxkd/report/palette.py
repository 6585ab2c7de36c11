"""How the lines of a figure are told apart, also by those who cannot tell all colours."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

# Okabe and Ito's colours, without yellow and black.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")

ABOVE, BELOW, AROUND = _COLORS[0], _COLORS[1], "#8C8C8C"


def line_styles(panels: Iterable[Iterable[str]]) -> dict[str, dict[str, Any]]:
  """The style of every label of a figure's panels: one label looks alike in all of them.

  Args:
    panels: the labels of each.

  Returns:
    Label -> {"color", "linestyle"}, as matplotlib takes them. Colours come round again with other
    dashes.

  >>> line_styles([["kd", "simkd"], ["simkd"]])["simkd"]
  {'color': '#D55E00', 'linestyle': '-'}
  """
  labels = dict.fromkeys(itertools.chain.from_iterable(panels))
  looks = itertools.cycle((color, dash) for dash in _DASHES for color in _COLORS)
  return {
    label: {"color": color, "linestyle": dash}
    for label, (color, dash) in zip(labels, looks, strict=False)
  }
