"""Time ten ways into the library with data, models and teachers of one's own.

    python experiments/studies/journeys/journeys.py [--output FILE] [--only NAME]

A new virtual environment gets the library from this checkout, and each journey the packages that it
needs besides. Then a program or a command of the docs runs in a clone, on data that this script
writes: the handwritten digits of scikit-learn as pictures, arrays and a Hugging Face data set. The
table has the lines of the program or of the command, and the seconds of its first run, which must
print a number.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[3]

# Written into the clone by the new environment's interpreter.
DATA = """
import json, pathlib
import datasets, numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
images = (digits.images * 15.9).astype(np.uint8)
for index, (image, label) in enumerate(zip(images, digits.target)):
  folder = pathlib.Path("pictures", f"digit{label}")
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(folder / f"{index}.png")
np.savez("own.npz", images=images, labels=digits.target)
names = [f"digit{label}" for label in range(10)]
columns = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
rows = {"image": [Image.fromarray(image) for image in images], "label": digits.target.tolist()}
datasets.Dataset.from_dict(rows, features=columns).save_to_disk("rows")

program = pathlib.Path("experiments/examples/one_call.py").read_text().split("if __name__")[0]
cells = [*program.split("\\n\\n\\n"), "main()"]
code = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
cells = [{**code, "source": cell} for cell in cells if cell.strip()]
pathlib.Path("own.ipynb").write_text(
  json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
)
"""

TRAIN = """experiments/train.py --config configs/digits.py:kd --workdir runs/{name}
--config.data.name={data}
--config.teacher.epochs=10 --config.student.epochs=10"""


class Journey(NamedTuple):
  """A way into the library.

  Attributes:
    what: what the user has.
    command: arguments of the interpreter, one line per line of the command.
    program: file of which the lines count, in experiments/examples; "" counts those of the command.
    packages: what the environment needs besides the extra `experiments`.
  """

  what: str
  command: str
  program: str = ""
  packages: tuple[str, ...] = ()


def _example(what: str, name: str, *packages: str, arguments: str = "") -> Journey:
  return Journey(what, f"experiments/examples/{name}.py {arguments}", f"{name}.py", packages)


JOURNEYS = {
  "folder": _example("pictures in folders", "own_folder", arguments="pictures runs/folder"),
  "npz": Journey("arrays in a file", TRAIN.format(name="npz", data="npz:own.npz")),
  "hf": Journey("a Hugging Face data set", TRAIN.format(name="hf", data="hf:rows"), "", ()),
  "nnx": _example("a student in NNX", "nnx_student"),
  "equinox": _example("a teacher in equinox", "equinox_teacher", "equinox"),
  "timm": _example("a ViT of timm as teacher", "timm_teacher"),
  "logits": _example("logits in a file", "logits_file"),
  "text": _example("texts", "text_classification"),
  "segmentation": _example("images with a class for every pixel", "segmentation"),
  "notebook": Journey(
    "a notebook", "-m nbconvert --to notebook --execute own.ipynb", "one_call.py",
    ("nbconvert", "ipykernel"),
  ),
}  # fmt: skip


def _call(*command: object, folder: pathlib.Path = ROOT) -> str:
  done = subprocess.run(
    [*map(str, command)], cwd=folder, capture_output=True, text=True, check=False
  )
  if done.returncode:
    sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
  return done.stdout + done.stderr


def _lines(journey: Journey) -> int:
  """Count the lines of code: no blank line, comment or docstring at the top."""
  if not journey.program:
    return len(journey.command.splitlines())
  text = (ROOT / "experiments/examples" / journey.program).read_text().split('"""', 2)[2]
  return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def main() -> None:
  """Run the journeys and print the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, help="also write the table to this file")
  parser.add_argument("--only", choices=JOURNEYS, help="one journey")
  arguments = parser.parse_args()
  rows = ["| you have | lines | packages besides | seconds |", "|---|---|---|---|"]
  with tempfile.TemporaryDirectory() as folder:
    clone = pathlib.Path(folder) / "jaxkd"
    _call("git", "clone", "-q", ROOT, clone)
    python = pathlib.Path(folder) / "venv/bin/python"
    start = time.monotonic()
    _call(sys.executable, "-m", "venv", python.parents[1])
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    _call(*pip, f"{clone}[experiments,hf]")
    made = f"The new environment took {time.monotonic() - start:.0f} s."
    print(made, flush=True)
    _call(python, "-c", DATA, folder=clone)
    for name, journey in JOURNEYS.items():
      if arguments.only not in (None, name):
        continue
      if journey.packages:
        _call(*pip, *journey.packages)
      start = time.monotonic()
      output = _call(python, *journey.command.split(), folder=clone)
      seconds = time.monotonic() - start
      if not re.search(r"\d", output):
        sys.exit(f"{name}: prints no number: {output[-500:]!r}")
      besides = ", ".join(journey.packages) or "-"
      cells = (journey.what, _lines(journey), besides, f"{seconds:.0f}")
      rows.append(f"| {' | '.join(map(str, cells))} |")
      print(rows[-1], flush=True)
  text = "\n".join(rows)
  if arguments.output:
    arguments.output.write_text(f"Written by `make journeys`. {made}\n\n{text}\n")


if __name__ == "__main__":
  main()
