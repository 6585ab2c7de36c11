"""Train the teacher and the students of a config, as `jaxkd train`.

    python experiments/train.py --config configs/digits.py:simkd --workdir runs/digits-simkd

`--help` lists the flags.
"""

import sys

from jaxkd import commands

if __name__ == "__main__":
  sys.exit(commands.run("train", sys.argv[1:]))
