"""Evaluate prediction under a budget, as `jaxkd budget`.

    python experiments/budget.py --run runs/fashion-exits --output exits.md

`--help` lists the flags.
"""

import sys

from jaxkd import commands

if __name__ == "__main__":
  sys.exit(commands.run("budget", sys.argv[1:]))
