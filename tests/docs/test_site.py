"""The site builds without a warning, stands alone, and shows what its sources say."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dpzo.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "docs").glob("*.md"))

# What makes a browser ask: an address in one of these, where a plain link (a href) only waits for a reader.
FETCHING = {
    "audio": {"src"},
    "embed": {"src"},
    "iframe": {"src"},
    "image": {"href", "xlink:href"},
    "img": {"src", "srcset"},
    "link": {"href"},
    "object": {"data"},
    "script": {"src"},
    "source": {"src", "srcset"},
    "use": {"href", "xlink:href"},
    "video": {"src", "poster"},
}
EXTERNAL = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
# url(…) and @import of a style sheet, fetch and import of a script would be further ways.
IN_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])\s*(?:https?:)?//", re.IGNORECASE)


class Page(HTMLParser):
    """Addresses that the page fetches, and the plain text of its paragraphs and cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.fetched: list[str] = []
        self.paragraphs: list[str] = []
        self._inside = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for name, value in attrs if value and name in FETCHING.get(tag, ())]
        if tag == "p":
            self._inside += 1
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._inside:
            self._inside -= 1

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


def built(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield str(path.relative_to(site)), path.read_text(encoding="utf-8")


def test_a_broken_link_ends_the_build(broken: subprocess.CompletedProcess[str]) -> None:
    assert broken.returncode != 0
    for target in ("two.md", "three", "four.svg"):
        assert target in broken.stderr


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    shown = (site / "index.html").read_text(encoding="utf-8")
    navigation = shown[shown.index('class="sidebar-tree"') :]
    for source in SOURCES:
        assert (site / f"{source.stem}.html").is_file()
        target = "#" if source.stem == "index" else f"{source.stem}.html"
        assert f'href="{target}"' in navigation, f"{source.name} is in no toctree of index.md"


def test_the_configuration_reference_lists_every_field(site: Path) -> None:
    page = (site / "configuration.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) == len(RunConfig.model_fields)
    for table, (group, info) in zip(tables, RunConfig.model_fields.items(), strict=True):
        listed = [re.sub(r"<.*?>", "", row) for row in re.findall(r"<tr.*?<td>(.*?)</td>", table, re.DOTALL)]
        assert [name.strip() for name in listed] == list(info.annotation.model_fields), group  # type: ignore[union-attr]
    assert "--num-examples" in page


@pytest.mark.parametrize("module", ["dpzo", "dpzo.privacy", "dpzo.privacy.accounting", "dpzo.zo", "dpzo.verify"])
def test_the_api_reference_lists_every_public_name(site: Path, module: str) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    home = importlib.import_module(module)
    listed = [
        name for name in home.__all__ if inspect.isclass(getattr(home, name)) or inspect.isfunction(getattr(home, name))
    ]
    assert listed
    missing = {name for name in listed if not re.search(rf'id="dpzo\.(\w+\.)*{name}"', page)}
    assert missing == set()


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for name, text in built(site):
        assert not [address for address in Page(text).fetched if EXTERNAL.match(address)], name
        assert not IN_STYLE.search(text), name
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not IN_STYLE.search(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize(
    "leak",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="HTTPS://badge.example/x.svg">',
    ],
)
def test_a_fetched_address_would_be_found(leak: str) -> None:
    assert [address for address in Page(leak).fetched if EXTERNAL.match(address)]
    assert not Page('<a href="https://arxiv.org/abs/2401.04343">x</a>').fetched


def test_no_list_table_or_block_fell_into_a_paragraph(site: Path) -> None:
    """Nothing shows as running text that was meant as a list, say for want of a blank line before it."""
    for name, text in built(site):
        for paragraph in Page(text).paragraphs:
            lines = [line.strip() for line in paragraph.splitlines()]
            for first in lines[:1]:
                assert not first.startswith(("- ", "* ", "|", "```", "#")), f"{name}: {first}"
            for line in lines[1:]:
                assert not line.startswith(("- ", "* ", "| ", "```", "1. ")), f"{name}: {line}"


def test_links_between_pages_lead_to_pages(site: Path) -> None:
    """Sphinx checks links of the sources; this test sees what was written as code or HTML."""
    for name, text in built(site):
        for target in re.findall(r'<a [^>]*href="([^"#:]+\.html)(?:#[^"]*)?"', text):
            assert (site / name).parent.joinpath(target).is_file(), f"{name} → {target}"


def test_figures_are_whole_and_named(site: Path) -> None:
    for source in SOURCES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", source.read_text(encoding="utf-8")):
            assert words, f"{source.name}: {target} has no description"
            figure = site / "_images" / Path(target).name
            assert figure.stat().st_size > 1000
            if figure.suffix == ".svg":
                assert ElementTree.parse(figure).getroot().tag.endswith("svg")
