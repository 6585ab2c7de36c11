"""Score trained networks on a data set, as `jaxkd evaluate`.

    python experiments/evaluate.py --bundle runs/digits-simkd

`--help` lists the flags.
"""

import sys

from jaxkd import commands

if __name__ == "__main__":
  sys.exit(commands.run("evaluate", sys.argv[1:]))
