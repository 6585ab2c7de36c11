"""Compare methods over several seeds, as `jaxkd compare`.

    python experiments/compare.py --config configs/digits.py --workdir runs/digits-compare

`--help` lists the flags.
"""

import sys

from jaxkd import commands

if __name__ == "__main__":
  sys.exit(commands.run("compare", sys.argv[1:]))
