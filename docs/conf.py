"""How `make docs` builds the site: from the Markdown files of the repository and the docstrings of the package."""

import re
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from limbeck import __version__ as release

project = "limbeck"
copyright = "The limbeck developers"  # noqa: A001 (what Sphinx calls it)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"  # the source folder is the repository: links to README.md and CONTRIBUTING.md work
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [".*", "build"]
highlight_language = "none"  # of blocks that name none
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes only: a quoted value of an option can be copied

napoleon_numpy_docstring = False
default_role = "py:obj"  # `name` in a docstring is a link if the reference has that name, and code otherwise
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {release}"
html_additional_pages = {"index": "forward.html"}  # to `root_doc`
templates_path = ["templates"]
html_use_index = html_domain_indices = False


def add_contents(_: Sphinx, name: str, text: list[str]) -> None:
    """Put the pages that an index page links to into the sidebar, with the page's headings as captions."""
    if name.endswith("/index"):
        for section in text[0].split("\n## "):
            pages = "\n".join(f"{title} <{page}>" for title, page in re.findall(r"\[([^]]+)\]\((\S+)\.md\)", section))
            caption = section.partition("\n")[0].removeprefix("# ")
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def keep_colons(_: Sphinx, what: str, *given: Any) -> None:
    """Start the comment of a field with an empty comment: Napoleon reads a first line ``a: b`` as type and text."""
    if what in ("attribute", "property"):
        given[-1][:0] = ["..", ""]


def fields_only(_: Sphinx, what: str, *__: Any) -> tuple[str, str] | None:
    """Leave out the signature of a class, which repeats its fields."""
    return ("", "") if what == "class" else None


def setup(app: Sphinx) -> None:
    """Connect the functions to Sphinx, and name a lexer for blocks of CSV, for which Pygments has none."""
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_colons, priority=0)  # before Napoleon
    app.connect("autodoc-process-signature", fields_only)
