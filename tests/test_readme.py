"""README.md and docs/: their snippets run; the commands, paths and figures in them exist."""

import functools
import importlib.util
import json
import pathlib
import re
import shlex
import sys
from unittest import mock

import numpy as np
import pytest

from jaxkd import cli, data, losses, methods
from jaxkd.experiment import build, overrides
from jaxkd.experiment import config as experiment_config

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GENERATED = {ROOT / "docs/methods", ROOT / "docs/api"}
PAGES = [
  *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent not in GENERATED),
  ROOT / "README.md",
  ROOT / "CHANGELOG.md",
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
each_page = pytest.mark.parametrize("page", TEXTS)


def blocks(text, *languages):
  return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, flags=re.DOTALL)


def commands(text):
  """The lines of shell blocks, continued ones joined, without comments."""
  for block in blocks(text, "sh"):
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
      words = shlex.split(line, comments=True)
      if words:
        yield words


# Page -> whether its snippets left what the page promises, by the names that they bound.
RESULTS = {
  "README.md": lambda names: (
    names["predicted"].shape == (512,) and set(names["result"].scores) == {"test", "validation"}
  ),
  "docs/bring-your-own.md": lambda names: (
    names["output"].features["pooled"].shape == (4, 8)
    and names["summary"]["stages"]["distilled"]["accuracy"] > 0.5
    and names["loaded"]["params"]["conv1"]["kernel"].shape == (3, 3, 4, 4)
  ),
  "docs/contributing.md": lambda names: (
    names["summary"]["stages"]["distilled"]["accuracy"] > 0.5
    and names["cosine"](names["student"], names["teacher"]).feature > 0
  ),
  "docs/inputs.md": lambda names: (
    names["results"]["student"].test["student"]["accuracy"] > 0.5
    and names["summary"]["stages"]["distilled"]["accuracy"] > 0.5
  ),
  "docs/data.md": lambda names: (
    names["own"].class_names == names["from_file"].class_names == ("dark", "grey", "bright")
    and names["from_file"].image_shape == (6, 6, 1)
    and len(names["of_source"].test) == 12
  ),
  "docs/losses.md": lambda names: float(names["terms"].total) > 0,
  "docs/teachers.md": lambda names: (
    names["shape"] == (60, 3)
    and len(names["table"]) == 60
    and names["scheme"].learners == ("student",)
  ),
  "docs/quickstart.md": lambda names: (
    names["logits"].shape == (600, 3) and names["result"].scores["test"] > 0.5
  ),
  "docs/training.md": lambda names: float(names["metrics"]["cosine_feature"][0]) > 0,
}


@functools.cache
def status(*arguments):
  """Return the exit status of a `jaxkd` command."""
  try:
    return cli.main(arguments)
  except SystemExit as end:
    return end.code


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if blocks(text, "python")])
def test_snippets_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {"__name__": "__main__"}
  with mock.patch.dict(methods.METHODS):  # a page may register a method
    for block in blocks(TEXTS[page], "python"):
      exec(compile(block, page, "exec"), names)
  assert page not in RESULTS or RESULTS[page](names)


def test_method_in_the_diff_of_the_contributing_page_is_a_valid_entry_of_the_registry(monkeypatch):
  page = TEXTS["docs/contributing.md"]
  loss, diff = blocks(page, "python")[0], blocks(page, "diff")[0]
  names = {}
  exec(compile(loss, "losses/cosine.py", "exec"), names)
  monkeypatch.setattr(losses, "cosine", names["cosine"], raising=False)
  added = diff.partition("--- a/jaxkd/methods/registry.py")[0].splitlines()[2:]
  assert all(line.startswith("+") for line in added[1:])
  source = "\n".join(line[1:] for line in added if line.startswith("+"))
  exec(compile(source, "methods/cosine.py", "exec"), names)
  with mock.patch.dict(methods.METHODS):
    methods.register("cosine", names["METHOD"])
    settings = experiment_config.base_config("kd+cosine")
    settings.teacher.model, settings.student.model = "resnet8_w8", "resnet8_w4"
    settings.baseline = False
    experiment_config.check_config(settings)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    indices = np.arange(8, dtype=np.int32)
    examples = data.ArrayExamples(images, indices % 4, indices)
    dataset = data.Dataset("drawn", *3 * [examples], 4, (8, 8, 1), (0.5,), (0.3,))
    distilled = build.phases(settings, dataset, traced=False)[-1]
  assert "cosine_pooled_connector" in distilled.scheme.learners


def lines_of(snippet):
  return [line for line in snippet.splitlines() if line.strip() and not line.startswith("#")]


def test_snippets_are_as_short_as_promised():
  [example] = blocks(README, "python")
  imports = [x for x in lines_of(example) if x.startswith(("import", "from"))]
  assert len(lines_of(example)) - len(imports) <= 12
  assert len(lines_of(blocks(TEXTS["docs/losses.md"], "python")[0])) <= 6
  *_, method = blocks(TEXTS["docs/training.md"], "python")
  assert len(lines_of(method)) <= 20


def test_readme_is_short():
  assert len(README.splitlines()) <= 150
  assert len(README.split()) <= 1600


def test_makefile_is_short():
  assert len((ROOT / "Makefile").read_text().splitlines()) <= 60


@each_page
def test_every_path_named_exists(page):
  for path in re.findall(r"`((?:jaxkd|configs|experiments|tests|docs)/[\w./]*)`", TEXTS[page]):
    if page != "CHANGELOG.md":  # which also names what was moved
      assert (ROOT / path).exists() or (ROOT / path) in GENERATED, path


@each_page
def test_every_link_and_include_leads_to_a_file(page):
  text, folder = TEXTS[page], (ROOT / page).parent
  links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
  links += re.findall(r"```\{include\} (\S+)", text)
  for link in links:
    path, _, anchor = link.partition("#")
    target = (folder / path).resolve()
    if "://" in link or target.parent in GENERATED:
      continue
    assert target.is_file(), link
    if anchor:
      headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
      slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
      assert anchor in slugs, link


@each_page
def test_every_make_target_named_exists(page):
  targets = set()
  for path in [ROOT / "Makefile", *ROOT.glob("tests/*.mk"), *ROOT.glob("experiments/*/*/*.mk")]:
    targets.update(re.findall(r"^([\w-]+):", path.read_text(), flags=re.MULTILINE))
  for target in re.findall(r"(?:`|^)make\s([a-z-]+)\b", TEXTS[page], flags=re.MULTILINE):
    assert target in targets, target


@each_page
def test_every_script_named_has_the_flags_and_the_config(page):
  for words in commands(TEXTS[page]):
    scripts = [word for word in words if word.startswith("experiments/") and word.endswith(".py")]
    for script in scripts:
      source = (ROOT / script).read_text()
      command = ROOT / "jaxkd/commands" / pathlib.Path(script).name
      if command.name == "train.py":
        command = command.with_name("training.py")
      if pathlib.Path(script).parent.name == "experiments" and command.is_file():
        source = command.read_text()
      arguments = words[words.index(script) + 1 :]
      for argument in arguments:
        if argument.startswith("--") and not argument.startswith("--config."):
          name = argument[2:].partition("=")[0]
          assert re.search(rf'DEFINE_\w+\(\s*"{name}"', source), (script, argument)
      if script == "experiments/train.py":
        check_config_of(arguments)


def check_config_of(arguments):
  """Builds the config of a command of experiments/train.py."""
  name = arguments[arguments.index("--config") + 1]
  path, _, method = name.partition(":")
  config = overrides.load_module(ROOT / path).get_config(*([method] if method else []))
  fields = [a[len("--config.") :] for a in arguments if a.startswith("--config.")]
  with config.unlocked():
    for field, _, value in (field.partition("=") for field in fields):
      section, _, last = field.rpartition(".")
      part = config
      for key in filter(None, section.split(".")):
        part = part[key]
      if last.endswith("_arguments"):  # NAME=VALUE,NAME=VALUE
        part[last] = value
        continue
      if section.endswith("_arguments"):
        part[last] = json.loads(value)
        continue
      assert last in part, field
      text = isinstance(part[last], str)
      part[last] = value if text else type(part[last])(json.loads(value.lower()))
  experiment_config.check_config(config)


@each_page
def test_every_jaxkd_command_named_exists(page):
  for words in commands(TEXTS[page]):
    if pathlib.PurePath(words[0]).name != "jaxkd":
      continue
    assert status(*words[1:2], "--help") == 0, words


def test_the_table_of_the_readme_is_the_one_that_was_written():
  written = (ROOT / "experiments/studies/tables/results/digits.md").read_text().splitlines()
  rows = [line for line in written if line.startswith("|")]
  assert len(rows) >= 4
  for row in rows:
    assert row in README


def test_every_method_is_named_in_the_readme():
  for name in methods.METHODS:
    assert f"`{name}`" in README or name in ("teacher", "alone"), name


BENCH = json.loads((ROOT / "experiments/studies/bench/results/bench.json").read_text())
SPEED = TEXTS["docs/results/benchmarks.md"]


@pytest.mark.parametrize(
  ("row", "section"),
  [
    ("step over hand-written JAX, one device", "step_over_handwritten"),
    ("step over hand-written PyTorch", "step_over_pytorch"),
    ("run of 20 epochs with cached targets over PyTorch's without", "run_over_pytorch"),
    ("step of 4 peers, or of 4 branches, over its parts", "cohort_over_parts"),
    ("FLOPs over teacher + 3 students", "flops_over_minimum"),
  ],
)
def test_ratios_are_those_that_were_measured(row, section):
  assert f"| {row} | {BENCH[section]:.2f} |" in SPEED


def test_the_step_with_cached_targets_is_as_measured():
  worst = max(row["cached"] for row in BENCH["details"]["step_over_pytorch"]["rows"].values())
  assert f"| step with cached targets over hand-written PyTorch | {worst:.2f} |" in SPEED


def test_parity_figures_are_of_all_golden_cases():
  rows = re.findall(r"^\| (\w+) \| (\d+) of (\d+) \| (\d+) of (\d+) \|$", PARITY, re.MULTILINE)
  counts = {}
  for path in (ROOT / "tests/golden").glob("*.npz"):
    with np.load(path, allow_pickle=False) as file:
      counts[str(file["method"])] = int(file["n_cases"])
  assert {name: (n, n, n, n) for name, n in counts.items()} == {
    name: tuple(map(int, figures)) for name, *figures in rows
  }


PARITY = (ROOT / "tests/parity.md").read_text()


@pytest.fixture(scope="module")
def generated():
  """The module that writes pages at build time; it imports no Sphinx until it is called by it."""
  sys.path.insert(0, str(ROOT / "docs/_ext"))
  try:
    import generated_pages

    yield generated_pages
  finally:
    sys.path.remove(str(ROOT / "docs/_ext"))


def test_every_method_gets_a_page_with_its_losses_and_fields(generated):
  parity = generated.parity_figures()
  for name, (summary, fields) in generated.registry().items():
    assert generated.method_losses(name), name
    page = generated.method_page(name, summary, fields, parity.get(name, ""))
    assert page.startswith(f"# {name}\n")
    for field, _, _ in generated.field_rows(fields):
      assert field == "name" or f"| `{field}` |" in page


def test_every_public_module_is_in_the_api_reference(generated):
  pages = generated.api_pages()
  assert {"jaxkd.losses", "jaxkd.train", "jaxkd.models", "jaxkd.types"} <= set(pages)
  assert ".. automodule:: jaxkd.export.bundles" in pages["jaxkd.export"]


def test_every_module_of_the_changelog_exists():
  rows = re.findall(r"^\| `(jaxkd[\w.]+)` \| `jaxkd", TEXTS["CHANGELOG.md"], flags=re.MULTILINE)
  assert len(rows) > 40
  for name in rows:
    assert importlib.util.find_spec(name) is not None, name
