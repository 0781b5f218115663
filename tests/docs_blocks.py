"""Read the snippets of the docs, so that tests run what readers copy."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def code_block(first_line: str) -> str:
    """Return the code block of the docs that begins with a comment."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))
    found = re.search(rf"```\w+\n({re.escape(first_line)}.*?)```", pages, re.DOTALL)
    assert found, first_line
    return found[1]
