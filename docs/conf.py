"""How the documentation site is built: `make docs` turns docs/ into site/, and any warning ends the build.

Pages are Markdown (MyST). Docstrings are Markdown too: `docstring_as_rst` translates them for autodoc.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent / "_extensions")]

import dpzo  # noqa: E402

project = "dpzo"
author = "The dpzo authors"
project_copyright = author
version = release = dpzo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "options"]
exclude_patterns = ["_extensions"]
smartquotes = False  # `--` in a sentence is an option, not a dash
myst_heading_anchors = 4

html_theme = "furo"
html_title = "dpzo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

CODE = re.compile(r"(`+)(.+?)\1")
TITLE = re.compile(r'^( *)```(\w+) title="([^"]*)"$', re.MULTILINE)
# Characters that mean nothing in our docstrings and something in reStructuredText.
MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def plain(text: str) -> str:
    """One line of a docstring: Markdown's `code` becomes ``code``, and all else stands for itself."""
    parts, at = [], 0
    for code in CODE.finditer(text):
        parts += [MARKUP.sub(r"\\\1", text[at : code.start()]), f"``{code[2]}``"]
        at = code.end()
        if text[at : at + 1].isalnum():
            parts.append("\\")
    return "".join([*parts, MARKUP.sub(r"\\\1", text[at:])])


def docstring_as_rst(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Translate a docstring in place: code spans, fences, and an empty line around lists and examples."""
    found: list[str] = []
    example = fenced = False
    for line in lines:
        begins = line.lstrip()
        if fenced or begins.startswith("```"):
            indent = line[: len(line) - len(begins)]
            ends = begins.startswith("```")
            found += ["", f"{indent}.. code-block:: {begins[3:]}", ""] if ends and not fenced else []
            found.append("" if ends else f"   {line}")
            fenced = fenced != ends
            continue
        was, example = example, begins.startswith(">>>") or (example and begins != "")
        if example:
            if not was and found and found[-1].strip():
                found.append("")
            found.append(line)
            continue
        listed = re.match(r"(- |\d+\. )", begins) is not None
        deeper = found and len(found[-1]) - len(found[-1].lstrip()) < len(line) - len(begins)
        in_list = found and re.match(r"\s*(- |\d+\. )", found[-1]) is not None
        if listed and found and found[-1].strip() and not in_list and not deeper and not _in_item(found, line):
            found.append("")
        found.append(plain(line))
    # Napoleon would read a property's `The card: …` as a type and a description, but only in the first line: a comment.
    lines[:] = ["..", "", *found] if what in ("property", "attribute", "data") else found


def _in_item(found: list[str], line: str) -> bool:
    """Whether the paragraph before `line` already is an item of its list, of several lines."""
    indent = len(line) - len(line.lstrip())
    for former in reversed(found):
        if not former.strip():
            return False
        if re.match(r"\s*(- |\d+\. )", former) and len(former) - len(former.lstrip()) == indent:
            return True
    return False


def captions(app: Sphinx, page: str, source: list[str]) -> None:
    """A block's title, which GitHub does not show and MyST does not know, becomes its caption."""
    source[0] = TITLE.sub(r'\1```{code-block} \2\n\1:caption: "\3"', source[0])


def setup(app: Sphinx) -> None:
    """Register the translation and the languages that Pygments has no lexer for."""
    app.add_lexer("csv", TextLexer)
    app.connect("autodoc-process-docstring", docstring_as_rst, priority=400)  # before napoleon
    app.connect("source-read", captions)
