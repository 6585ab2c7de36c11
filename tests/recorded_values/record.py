"""Write the files of recorded values, or with --compare print the differences from it.

python -m tests.recorded_values.record [--compare] [--only TEXT]
"""

from __future__ import annotations

import argparse
import time

from jaxkd.errors import ConfigError
from tests import conftest  # for its devices and its compiler's options
from tests.recorded_values import cases, compute


def main() -> None:
  """Computes every case, or those with a text in their names."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--compare", action="store_true", help="write nothing, report differences")
  parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their names")
  arguments = parser.parse_args()
  values = compute.recorded()
  if not arguments.compare and not arguments.only:
    values = {}
  worst: dict[str, float] = {}
  for pair in cases.PAIRS:
    for variant in (*cases.OFTEN, *cases.OTHERS):
      key, began = compute.key_of(variant, pair), time.process_time()
      if arguments.only not in key:
        continue
      try:
        found = compute.values_of(variant, pair)
      except ConfigError as error:
        known = cases.REFUSED.get((variant, pair))
        print(f"{key}: {'refused' if known else f'REFUSED, and not listed: {error}'}", flush=True)
        continue
      seconds = time.process_time() - began
      if arguments.compare:
        off = compute.largest(found, values.get(key, {}))
        worst = {kind: max(worst.get(kind, 0), off.get(kind, 0)) for kind in {*worst, *off}}
        said = ", ".join(f"{kind} {value:.1e}" for kind, value in sorted(off.items()))
      else:
        values[key], said = found, f"{len(found)} phases"
      print(f"{key}: {said} ({seconds:.1f} s of CPU)", flush=True)
  if arguments.compare:
    print("largest relative differences:", dict(sorted(worst.items())))
  else:
    compute.write(values)


if __name__ == "__main__":
  try:
    main()
  finally:
    conftest.pytest_unconfigure()
