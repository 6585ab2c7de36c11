"""Export a trained network as one file that runs with jax, and its weights under readable names.

    jaxkd export --bundle runs/digits/bundles/distilled/student --output student/

Writes function.stablehlo, weights.safetensors and README.txt (input, output, how to load it) to the
output directory, and prints README.txt. A run's directory in place of a bundle exports every
predictor of every stage.
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd export"):
  import jax
  from absl import flags, logging
  from jax import export
  from rich.console import Console

  from jaxkd import commands, report
  from jaxkd.errors import ConfigError
  from jaxkd.export import bundles, scores, stablehlo
  from jaxkd.shapes import named_leaves

FLAGS = flags.FlagValues()

_BUNDLE = flags.DEFINE_string(
  "bundle",
  None,
  "A predictor's bundle, or a run's work directory.",
  required=True,
  flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "The directory to write to; new, or an older export.",
  required=True,
  flag_values=FLAGS,
)
_PLATFORMS = flags.DEFINE_list(
  "platforms",
  ["cpu", "cuda", "tpu"],
  f"Where it is to run: {', '.join(stablehlo.PLATFORMS)}.",
  flag_values=FLAGS,
)
_BATCH = flags.DEFINE_integer(
  "batch_size", None, "Images at a time; by default any number.", flag_values=FLAGS
)
_ALLOW = flags.DEFINE_list(
  "allow_import", [], "Packages whose code the bundle may import, such as mypkg.", flag_values=FLAGS
)

FUNCTION, WEIGHTS, README = "function.stablehlo", "weights.safetensors", "README.txt"


def main(argv: list[str]) -> None:
  """Export the bundles that the flags name."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  found = scores.find_bundles(pathlib.Path(_BUNDLE.value))
  outputs = {name: pathlib.Path(_OUTPUT.value) / name for name in found}
  # All output directories are checked before any is written.
  for output in outputs.values():
    check_output(output)
  console = Console()
  for name, bundle in found.items():
    text = write(bundle, outputs[name], platforms=tuple(_PLATFORMS.value), batch_size=_BATCH.value)
    console.print(f"{outputs[name]}\n\n{text}", soft_wrap=True, highlight=False, markup=False)


def check_output(directory: pathlib.Path) -> None:
  """Raise a ConfigError unless a directory is new, empty, or an older export."""
  if not directory.exists():
    return
  if not directory.is_dir():
    raise ConfigError(f"output={str(directory)!r} is a file, expected a directory")
  names = {path.name for path in directory.iterdir() if path.suffix != ".partial"}
  older = stablehlo.is_function(directory / FUNCTION) and names <= {FUNCTION, WEIGHTS, README}
  if names and not older:
    raise ConfigError(
      f"output={str(directory)!r} holds something else than an export: nothing was written"
    )


def write(
  bundle: pathlib.Path,
  directory: pathlib.Path,
  *,
  platforms: tuple[str, ...],
  batch_size: int | None,
) -> str:
  """Export one bundle; returns the text of README.txt."""
  network, description = bundles.load_bundle(bundle, allow=_ALLOW.value)
  exported = stablehlo.export_function(
    network, description, platforms=platforms, batch_size=batch_size
  )
  stablehlo.save_function(directory / FUNCTION, exported)
  copy(bundle / WEIGHTS, directory / WEIGHTS)
  text = described(exported, network.variables, description)
  report.write_atomically(directory / README, text)
  return text


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copy a file, and read the copy back before it gets its name."""
  content = source.read_bytes()
  partial = target.with_name(target.name + ".partial")
  partial.write_bytes(content)
  if partial.read_bytes() != content:
    raise ConfigError(f"{target}: the copy of {source} is damaged")
  partial.replace(target)


def described(
  exported: export.Exported, variables: Mapping[str, Any], description: Mapping[str, Any]
) -> str:
  """Return the text of README.txt."""
  (logits,) = exported.out_avals
  (inputs,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  arrays = jax.tree_util.tree_leaves_with_path(variables)
  path = "/".join(key.key for key in arrays[-1][0])
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  known = [
    f"{field}: {description[field]}"
    for field in ("data", "method", "stage", "predictor", "model", "test_accuracy")
    if field in description
  ]
  return f"""\
{", ".join(known)}

{FUNCTION}: the whole prediction, weights inside, for {", ".join(exported.platforms)}.
  in:   {_inputs(inputs)}
  out:  logits, {logits.dtype} {_shape(logits)}, one per class

  from jax import export
  function = export.deserialize(bytearray(open("{FUNCTION}", "rb").read()))
  logits = function.call({"inputs" if "inputs" in description else "images"})

  It takes jax and flatbuffers (pip install jax flatbuffers); jax {jax.__version__} wrote it.

{WEIGHTS}: the {len(arrays)} arrays by name, such as {path}; {parameters:,} parameters.
{_normalisation(description)}"""


def _inputs(inputs: Any) -> str:
  """Return the argument of the function in words."""
  if hasattr(inputs, "shape") and inputs.dtype == "uint8":
    return f"images, {inputs.dtype} {_shape(inputs)}, 0..255 as the data set stores them"
  leaves = named_leaves(inputs)
  return "; ".join(f"{name}, {leaf.dtype} {_shape(leaf)}" for name, leaf in leaves.items())


def _normalisation(description: Mapping[str, Any]) -> str:
  if "inputs" in description:
    return "  A network of them takes the inputs as they are.\n"
  return f"""\
  A network of them takes (images / 255 - mean) / std with
  mean {list(description["mean"])}
  std {list(description["std"])}
"""


def _shape(array: Any) -> str:
  return f"({', '.join(str(size) for size in array.shape)})"


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  return commands.run_main(sys.modules[__name__], main, arguments)
