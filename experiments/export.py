"""Export a trained network as one file, as `jaxkd export`.

    python experiments/export.py --bundle runs/digits/bundles/distilled/student --output student/

`--help` lists the flags.
"""

import sys

from jaxkd import commands

if __name__ == "__main__":
  sys.exit(commands.run("export", sys.argv[1:]))
