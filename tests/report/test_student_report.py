"""A student's report as JSON, Markdown and HTML; the page in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from jaxkd import report
from jaxkd.report.student.figures import figures
from tests.report.student_case import N, made


@pytest.fixture(scope="module")
def found():
  return made()


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  assert report.write_student_report(folder, found) == folder / "report.html"
  return folder


class Page(html.parser.HTMLParser):
  """The tags of a page, its tables and what it refers to."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.cells = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag not in ("meta", "img"):
      self.open.append(tag)
    self.sources += [value for name, value in attributes if name in ("src", "href")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    if self.open and self.open[-1] in ("td", "th", "h1", "h2"):
      self.cells.append(text)


def test_json_is_the_tree_and_holds_no_nan(found, written):
  assert json.loads((written / "report.json").read_text()) == found.tree


def test_markdown_has_every_predictor_and_difference(found, written):
  text = (written / "report.md").read_text()
  own = found.tree["predictors"]["ensemble"]
  scores = next(line for line in text.splitlines() if line.startswith("| ensemble |"))
  assert f"{100 * own['scores']['top1']:.2f}" in scores
  assert f"{own['scores']['nll']:.4f}" in scores
  gap = own["differences"]["baseline"]["top1"]
  shown = " [{}, {}]".format(*(f"{100 * gap[end]:+.2f}" for end in ("low", "high")))
  assert f"| ensemble | baseline | top-1, % | {100 * gap['value']:+.2f}{shown} |" in text
  assert "class 'fox' has no image here" in text
  widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
  tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
  assert sum(table.count("|") for table in tables) == sum(widths)
  for table in tables:  # a name with a bar does not split a cell
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_is_complete_and_refers_to_nothing_outside(written):
  text = (written / "report.html").read_text()
  page = Page(text)
  assert page.open == []
  assert len(page.sources) == 6
  assert all(source.startswith("data:image/png;base64,") for source in page.sources)
  assert "<script>" not in text
  assert {"Scores", "Attention maps", "Similarity of features", "Costs"} <= set(page.cells)
  assert "cat <script>" in page.cells


def test_a_terminal_gets_the_main_tables(found):
  text = report.student_tables(found)
  assert text.startswith("- class 'fox' has no image here")
  assert "## Scores" in text
  assert "## Confusion" not in text
  assert "| 20 | 19 | 50.00 | -0.1, -inf |" in text


@pytest.mark.long
def test_figures_of_a_report_without_images_teacher_or_cka(found):
  assert list(figures(found)) == ["calibration", "classes", "confusion", "worst", "maps", "cka"]
  tree = {**found.tree, "teacher": None, "baseline": None, "cka": None, "worst": {}}
  assert list(figures(report.StudentReport(tree))) == ["calibration", "confusion"]


def test_the_index_links_every_report(found, written):
  index = written.parent / "index.html"
  report.write_index(index, {"seed0/kd & co": (written / "report.html", found.tree)}, "Runs")
  page = Page(index.read_text())
  assert page.sources == [f"{written.name}/report.html"]
  assert (index.parent / page.sources[0]).is_file()
  accuracy = found.tree["predictors"]["ensemble"]["scores"]["top1"]
  assert f"{100 * accuracy:.2f}" in page.cells


@pytest.mark.long
def test_a_browser_shows_the_page_with_all_of_its_pictures(found, written, tmp_path):
  browser = shutil.which("chromium")
  if browser is None:
    pytest.skip("no chromium: apt-get install --no-install-recommends chromium")
  arguments = [
    browser,
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    f"--user-data-dir={tmp_path / 'profile'}",
    "--window-size=1000,4000",
  ]
  # The title is the number of pictures that are decoded, set by a copy of the page.
  text = (written / "report.html").read_text()
  probe = (
    "<script>addEventListener('load', () => { document.title = [...document.images]"
    ".filter(image => image.complete && image.naturalWidth > 50).length + ' pictures' })</script>"
  )
  (tmp_path / "probe.html").write_text(text.replace("</body>", f"{probe}</body>"))
  read = subprocess.run(
    [*arguments, "--dump-dom", (tmp_path / "probe.html").as_uri()],
    capture_output=True, text=True, timeout=120, check=True,
  ).stdout  # fmt: skip
  assert "<title>6 pictures</title>" in read
  assert f"{N} test images of animals, 6 classes" in read
  picture = tmp_path / "page.png"
  page = (written / "report.html").as_uri()
  subprocess.run(
    [*arguments, f"--screenshot={picture}", page], capture_output=True, timeout=120, check=True
  )
  from PIL import Image

  with Image.open(picture) as image:
    assert image.size == (1000, 4000)
    colors = image.convert("RGB").getcolors(2**24)
  assert len(colors) > 100  # not an empty page
