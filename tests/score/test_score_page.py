"""The report page of a real run: whole, self-contained, and harmless whatever the text says."""

import contextlib
import html.parser
import re

import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.cli.report.svg import bars, heat_map, lines

pytestmark = pytest.mark.slow

HOSTILE = 'He said: <script>alert("x")</script> & <img src=x onerror=y> '


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.opened, self.depth, self.attributes = [], 0, set()

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        self.attributes |= {name for name, _ in attributes}


@pytest.fixture(scope="module")
def page(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    text = sorted((built[0] / "books").iterdir())[0].read_text()
    (folder / "<b>one.txt").write_text(HOSTILE + text[:400])
    (folder / "two.txt").write_text(text[400:900] + HOSTILE)
    with contextlib.chdir(folder):
        command = ["score", "--store", str(built[0] / "books"), "--text", ".", "--report", "r.html", "--quiet"]
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return (folder / "r.html").read_text()


def test_the_page_has_every_part_and_needs_nothing_from_outside(page):
    for part in (
        "lower perplexity",
        "temperature",
        "by document",
        "nearest neighbour",
        "Calibration",
        "improved most",
        "worsened most",
    ):
        assert part in page
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page.replace("&lt;img src=x", ""))
    assert page.count("<svg") == page.count("</svg>") >= 5


def test_text_of_strangers_stays_text(page):
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "b"} & set(tags.opened)
    assert not {name for name in tags.attributes if name.startswith("on")}


def test_charts_escape_their_words_and_take_flat_numbers():
    for chart in (
        heat_map([[1.0, 1.0]], ["<a>"], ["&", "b"], across="x", down="y", chosen=(0, 0)),
        bars(["<a>"], [0.0], ["&"]),
        lines({"<a>": ([0.1], [0.2])}, across="&", up="y"),
    ):
        assert "<a>" not in chart
        assert "&<" not in chart
        assert "nan" not in chart
