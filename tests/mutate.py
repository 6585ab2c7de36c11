"""Mutation tests of the losses: break the code in one place, report the first test that fails.

    python -m tests.mutate [--output FILE] [--only FILE]

Each mutation is applied to a copy of the working tree, where the tests of the losses then run up
to the first failure. If no property test fails for some mutation, the exit status is 1.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from tests import rows
from tests.rows._mutation import Mutation

ROOT = pathlib.Path(__file__).parents[1]
# The long tests may be what notices a mutation.
PYTEST = (sys.executable, "-m", "pytest", "-m", "not faults and not numerics")


MUTATIONS = [
  Mutation(
    "KL with the arguments exchanged",
    "kd.py",
    """  log_p_student = log_probabilities(student, temperature)
  log_p_teacher = log_probabilities(teacher, temperature)
""",
    """  log_p_teacher = log_probabilities(student, temperature)
  log_p_student = log_probabilities(teacher, temperature)
""",
    "test_kd.py",
    "kd",
  ),
  Mutation(
    "T^2 dropped",
    "kd.py",
    "scale = temperature * temperature if squared_temperature else 1.0",
    "scale = 1.0",
    "test_kd.py",
    "kd",
  ),
  Mutation(
    "teacher's logits not constant",
    "kd.py",
    "widen(student, lax.stop_gradient(teacher), what",
    "widen(student, teacher, what",
    "test_kd.py",
    "kd",
  ),
  Mutation(
    "cross-entropy divided by the batch size, not the sum of weights",
    "cross_entropy.py",
    "total = jnp.sum(weights if of_classes is None else weights * of_classes[labels])",
    "total = jnp.float32(weights.shape[0])",
    "test_cross_entropy.py",
    "",
  ),
  Mutation(
    "class weights missing from the sum of weights",
    "cross_entropy.py",
    "total = jnp.sum(weights if of_classes is None else weights * of_classes[labels])",
    "total = jnp.sum(weights)",
    "test_cross_entropy.py",
    "",
  ),
  Mutation(
    "class against its negative logit, not against 0",
    "multi_label.py",
    "jnp.stack([logits, jnp.zeros_like(logits)], axis=-1)",
    "jnp.stack([logits, -logits], axis=-1)",
    "test_multi_label.py",
    "",
  ),
  Mutation(
    "padded tokens counted in the mean of an example",
    "_counting.py",
    "number_of_tokens = jnp.maximum(jnp.sum(tokens, axis=1), 1)",
    "number_of_tokens = tokens.shape[1]",
    "test_tokens.py",
    "",
  ),
  Mutation(
    "hints summed, not averaged",
    "fitnets.py",
    "return mean(squares, counted) if tokens is None",
    "return jnp.sum(squares) if tokens is None",
    "test_fitnets.py",
    "fitnet",
  ),
  Mutation(
    "attention maps not normalised",
    "at.py",
    "return (energy / scale) / (norm + bound if eps_added else jnp.maximum(norm, bound))",
    "return energy",
    "test_at.py",
    "at",
  ),
  Mutation(
    "attention maps' distance squared in the paper's norm",
    "at.py",
    "return mean(l2_distance(student_map, teacher_map, (1, 2)), counted)",
    "return mean(jnp.square(l2_distance(student_map, teacher_map, (1, 2))), counted)",
    "test_at.py",
    "at",
  ),
  Mutation(
    "teacher's gradient not constant in gradient attention",
    "gradient_at.py",
    """"gradient_l2", student, lax.stop_gradient(teacher), where""",
    """"gradient_l2", student, teacher, where""",
    "test_gradient_at.py",
    "",
  ),
  Mutation(
    "NST's channels not normalised",
    "nst.py",
    "cosines = products * x_scale[:, :, None] * y_scale[:, None, :]",
    "cosines = products",
    "test_nst.py",
    "nst",
  ),
  Mutation(
    "NST's cross term with factor 1, not 2",
    "nst.py",
    "- 2.0 * mean_kernel(across, s_scale, t_scale)",
    "- mean_kernel(across, s_scale, t_scale)",
    "test_nst.py",
    "nst",
  ),
  Mutation(
    "FSP not divided by the number of positions",
    "fsp.py",
    "return products / (rows * columns)",
    "return products",
    "test_fsp.py",
    "fsp",
  ),
  Mutation(
    "factors not normalised",
    "ft.py",
    "s, t = (l2_normalize(f, (1, 2), eps=eps) for f in (s, t))",
    "s, t = s, t",
    "test_ft.py",
    "ft",
  ),
  Mutation(
    "boundaries on the wrong side",
    "ab.py",
    "jnp.where(on, s, -s)",
    "jnp.where(on, -s, s)",
    "test_ab.py",
    "ab",
  ),
  Mutation(
    "boundaries' stage weights reversed",
    "ab.py",
    "2.0 ** (i - count + 1)",
    "2.0 ** -i",
    "test_ab.py",
    "ab",
  ),
  Mutation(
    "RKD's distances not divided by their mean",
    "rkd.py",
    "return distances / (jnp.where(total > 0, total, 1.0) / jnp.maximum(count * (count - 1), 1))",
    "return distances",
    "test_rkd.py",
    "rkd",
  ),
  Mutation(
    "RKD's gradient stopped at samples gathered from other devices",
    "_rkd_distances.py",
    "gathered = lax.all_gather(x, axis_name, tiled=True)",
    "gathered = lax.stop_gradient(lax.all_gather(x, axis_name, tiled=True))",
    "test_rkd.py",
    "",
  ),
  Mutation(
    "RKD's angles from the wrong slope",
    "_rkd_angles.py",
    "by_inverse = _add(by_inverse, shift, slope * (d_j - u_j * square))",
    "by_inverse = _add(by_inverse, shift, slope * (d_k - u_k * square))",
    "test_rkd.py",
    "rkd",
  ),
  Mutation(
    "larger maps not pooled by the mean",
    "_resize.py",
    "pooled = jnp.mean(pooled.reshape(blocks), axis=(2, 4))",
    "pooled = jnp.max(pooled.reshape(blocks), axis=(2, 4))",
    "test_resize.py",
    "at",
  ),
  Mutation(
    "peers' KL with the arguments exchanged",
    "dml.py",
    """  log_p = log_probabilities(student, temperature)
  log_q = log_probabilities(peer, temperature)
""",
    """  log_q = log_probabilities(student, temperature)
  log_p = log_probabilities(peer, temperature)
""",
    "test_dml.py",
    "dml",
  ),
  Mutation(
    "detached peers with a gradient",
    "dml.py",
    "lax.stop_gradient(peer) if detached else peer",
    "peer",
    "test_dml.py",
    "dml",
  ),
  Mutation(
    "peers always averaged",
    "dml.py",
    """total / len(divergences) if over_peers == "mean" else total""",
    "total / len(divergences)",
    "test_dml.py",
    "dml",
  ),
  Mutation(
    "a smoothed target scaled to sum to 1",
    "dml.py",
    " + student.shape[-1] * target_smoothing",
    "",
    "test_dml.py",
    "one",
  ),
  Mutation(
    "the shallowest exit is the teacher, not the deepest",
    "multi_exit.py",
    "return [log_ps[-1:]] * (len(log_ps) - 1) + [[]]",
    "return [[]] + [log_ps[:1]] * (len(log_ps) - 1)",
    "test_multi_exit.py",
    "multi_exit",
  ),
  Mutation(
    "temperature grows below the confidence, not above",
    "multi_exit.py",
    "found > confidence",
    "found < confidence",
    "test_multi_exit.py",
    "multi_exit",
  ),
  Mutation(
    "BYOT's hints compared where both are active",
    "byot.py",
    "(student > 0) | (teacher > 0)",
    "(student > 0) & (teacher > 0)",
    "test_byot.py",
    "byot",
  ),
  Mutation(
    "BYOT's distance squared",
    "byot.py",
    "distance, norm = l2_norm((student - teacher).reshape(-1), 0),",
    "distance, norm = jnp.sum(jnp.square(student - teacher)),",
    "test_byot.py",
    "byot",
  ),
  Mutation(
    "BYOT's distance per device",
    "byot.py",
    "if axis_name is not None:",
    "if False:",
    "test_byot.py",
    "",
  ),
  Mutation(
    "padding counted in means",
    "_counting.py",
    "return size if counted is None else jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1)",
    "return size",
    "test_counting.py",
    "",
  ),
  Mutation(
    "invalid labels not detected",
    "cross_entropy.py",
    "known | ~weighed, 1.0, jnp.nan)",
    "known | ~weighed, 1.0, 1.0)",
    "test_labels.py",
    "",
  ),
  Mutation(
    "rounding counted as a distance",
    "_numerics.py",
    "return jnp.where(distance > rounding, distance, 0.0)",
    "return distance",
    "test_rounding.py",
    "",
  ),
  Mutation(
    "CWTM without the teacher's confidence",
    "born_again.py",
    "return cross_entropy(student, labels, confidence, axis_name=axis_name)",
    "return cross_entropy(student, labels, weights, axis_name=axis_name)",
    "test_born_again.py",
    "",
  ),
  Mutation(
    "DKPP with one permutation for all examples",
    "born_again.py",
    "axis=1, independent=True",
    "axis=1, independent=False",
    "test_born_again.py",
    "",
  ),
]
MUTATIONS += rows.joined("MUTATIONS")


def mutated(mutation: Mutation, root: pathlib.Path = ROOT) -> tuple[pathlib.Path, str]:
  """Return the path of the file to mutate and its mutated text.

  Raises:
    ValueError: unless `old` occurs exactly once in the file.
  """
  path = root / "jaxkd" / ("" if "/" in mutation.file else "losses") / mutation.file
  text = path.read_text()
  if text.count(mutation.old) != 1:
    raise ValueError(f"{mutation.what}: {mutation.old!r} must occur once in {mutation.file}")
  return path, text.replace(mutation.old, mutation.new)


def file_of_tests(mutation: Mutation) -> str:
  """Return the path of the file of tests that runs for a mutation."""
  return f"tests/{mutation.tests}" if "/" in mutation.tests else f"tests/losses/{mutation.tests}"


def catch(mutation: Mutation, arguments: list[str]) -> str:
  """Return the name of the first test that fails under the mutation; "" if none does."""
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder)
    for part in ("jaxkd", "tests"):
      shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    path, text = mutated(mutation, copy)
    path.write_text(text)
    # pytest finds the copy before the installed package (pyproject's pythonpath).
    done = subprocess.run(
      [*PYTEST, "-x", "-p", "no:cacheprovider", *arguments],
      cwd=copy,
      capture_output=True,
      text=True,
      check=False,
    )
  if done.returncode == 0:
    return ""
  failed = re.search(r"^FAILED \S*?::(\S+)", done.stdout, re.MULTILINE)
  if done.returncode != 1 or failed is None:
    sys.exit(f"{mutation.what}: pytest could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
  return failed[1]


def catch_both(mutation: Mutation) -> tuple[str, str]:
  """Return the first property test that fails, and the first golden case."""
  generic = [] if "/" in mutation.tests else ["tests/losses/test_every_loss.py"]
  properties = catch(mutation, [file_of_tests(mutation), *generic])
  if not mutation.parity:
    return properties, "not published"
  parity = catch(mutation, ["tests/test_golden.py", "-k", f"agrees and {mutation.parity}-"])
  return properties, parity


def main() -> None:
  """Run every mutation and print the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=pathlib.Path, help="also write the table to this file")
  parser.add_argument("--only", metavar="FILE", help="mutations of this file alone, as kd.py")
  arguments = parser.parse_args()
  output = arguments.output
  chosen = [m for m in MUTATIONS if arguments.only in (None, m.file)]
  if not chosen:
    parser.error(f"--only {arguments.only}: no mutation of that file")
  with ThreadPoolExecutor(2) as pool:
    caught = list(pool.map(catch_both, chosen))
  lines = ["| mutation | first property test that fails | first golden case that fails |"]
  lines += ["|---|---|---|"]
  for mutation, tests in zip(chosen, caught, strict=True):
    cells = [test if test == "not published" else f"`{test}`" if test else "-" for test in tests]
    lines.append(f"| {mutation.what} | {' | '.join(cells)} |")
  text = "\n".join(lines)
  print(text)
  if output:
    output.write_text(f"Written by `python -m tests.mutate`.\n\n{text}\n")
  missed = [m.what for m, (properties, _) in zip(chosen, caught, strict=True) if not properties]
  if missed:
    sys.exit(f"no property test fails for: {', '.join(missed)}")


if __name__ == "__main__":
  main()
