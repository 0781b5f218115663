"""Rules that say whether a completion follows an instruction."""

import json
from collections.abc import Mapping
from typing import Any


def follows(completion: str, rule: Mapping[str, Any]) -> bool:
    """Say whether a completion follows a rule.

    Space around the completion never counts. Kinds of rule:
    ``exact``: the completion is ``text``, letter by letter.
    ``list``: it names ``count`` different members of ``of`` and nothing else, in the ``layout``
    ``commas`` (one line, separated by ", ") or ``bullets`` (one per line after "- ").
    ``json``: it is a JSON document equal to ``value``; order of keys and spacing do not count.

    Args:
        completion: What the model answered.
        rule: The rule, its ``kind`` and that kind's own keys.

    Returns:
        Whether the rule is met.

    Raises:
        ValueError: If the rule's kind or layout is unknown.

    >>> follows("fox, hen", {"kind": "list", "layout": "commas", "count": 2, "of": ["fox", "hen"]})
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
        case "json":
            return _equals_json(text, rule["value"])
    raise ValueError(f"rule kind must be 'exact', 'list' or 'json', got {rule['kind']!r}.")


def _lists(text: str, rule: Mapping[str, Any]) -> bool:
    match rule["layout"]:
        case "commas":
            members = text.split(", ")
        case "bullets":
            lines = text.split("\n")
            if not all(line.startswith("- ") for line in lines):
                return False
            members = [line.removeprefix("- ") for line in lines]
        case layout:
            raise ValueError(f"rule layout must be 'commas' or 'bullets', got {layout!r}.")
    return (
        len(members) == rule["count"]
        and len(set(members)) == len(members)
        and set(members) <= set(rule["of"])
    )


def _equals_json(text: str, value: Any) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or nested beyond what the parser takes
        return False
    # Python's 1 == True and 1 == 1.0 would let a wrong type pass; the written forms differ.
    return json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True)
