"""Rules that say whether a completion follows an instruction."""

from collections.abc import Mapping
from typing import Any


def follows(completion: str, rule: Mapping[str, Any]) -> bool:
    r"""Say whether a completion follows a rule.

    Space around the completion never counts. Kinds of rule:
    ``exact``: the completion is ``text``, letter by letter.
    ``list``: it names ``count`` different members of ``of`` and nothing else, one per line, in the
    ``layout`` ``dashes`` (each after "- ") or ``numbers`` (each after "1. ", "2. " and so on).

    Args:
        completion: What the model answered.
        rule: The rule, its ``kind`` and that kind's own keys.

    Returns:
        Whether the rule is met.

    Raises:
        ValueError: If the rule's kind or layout is unknown.

    >>> rule = {"kind": "list", "layout": "dashes", "count": 2, "of": ["fox", "hen", "cow"]}
    >>> follows("- cow\n- hen", rule)
    True
    >>> follows("Fox", {"kind": "exact", "text": "fox"})
    False
    """
    text = completion.strip()
    match rule["kind"]:
        case "exact":
            return bool(text == rule["text"])
        case "list":
            return _lists(text, rule)
    raise ValueError(f"rule kind must be 'exact' or 'list', got {rule['kind']!r}.")


def _lists(text: str, rule: Mapping[str, Any]) -> bool:
    count, known = rule["count"], set(rule["of"])
    match rule["layout"]:
        case "dashes":
            marks = ["- "] * count
        case "numbers":
            marks = [f"{place}. " for place in range(1, count + 1)]
        case layout:
            raise ValueError(f"rule layout must be 'dashes' or 'numbers', got {layout!r}.")
    lines = text.split("\n")
    if len(lines) != count:
        return False
    members = {
        line.removeprefix(mark)
        for line, mark in zip(lines, marks, strict=True)
        if line.startswith(mark)
    }
    return len(members) == count and members <= known
