"""Explain the parser's messages: one line, the full key, where the value was written."""

import re

from omegaconf import OmegaConf

from sft_lab.config.compose import Composed


def explain(message: str, written: Composed) -> str:
    r"""Return the parser's message in one line, preceded by where the value was written.

    >>> explain('Parser key "data.k":\n  Expected a <class \'int\'>. Got value: x', Composed())
    'data.k: expected int, got x.'
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)
    text = re.sub(r'Parser key "[^"]+":', "", message)
    text = re.sub(r"Problem with given class_path '[^']+':", "", text)
    text = " ".join(text.split())
    # Of a union, keep the types and the value only.
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: (\[.*?\]) .*Given value: ",
        r"Expected one of \1. Got value: ",
        text,
    )
    text = re.sub(r"^Call to compute_fn of link .* failed: ", "", text)
    key = _written_key(keys, text, written)
    if expected := re.match(r"(?:Expected|Not a valid subclass of) (.*?)\. Got value: (.*)", text):
        types, value = expected.groups()
        value = value.partition(" Subclass types expect")[0]
        text = f"expected {_plain_types(types)}, got {value}."
    return f"{written.where(key)}: {text}" if key else text


def _plain_types(text: str) -> str:
    """Return types in the words of YAML.

    >>> _plain_types("one of [Literal['live', 'merged'], sft_lab.x.Lora, <class 'NoneType'>]")
    'one of live, merged, Lora, null'
    """
    text = re.sub(r"<class '([^']+)'>", r"\1", text).removeprefix("a ")
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "null")
    while (plain := re.sub(r"Literal\[([^\[\]]*)\]", r"\1", text)) != text:
        text = plain
    return re.sub(r"^one of \[(.*)\]$", r"one of \1", text).replace("'", "")


def _written_key(keys: list[str], text: str, written: Composed) -> str:
    """Return the key of a wrong value; for an entry of a dict the parser leaves out its name."""
    value = re.split(r"(?:Got value|import path string): ", text)[-1]
    value = value.partition(" Subclass types")[0]
    if len(keys) == 1:
        below = [key for key in written.origins if key.startswith(f"{keys[0]}.")]
        found = [key for key in below if str(OmegaConf.select(written.config, key)) == value]
        return found[0] if len(found) == 1 else keys[0]
    entries: list[str] = []
    for key in reversed(written.origins):
        if len(keys) > 1 and key.startswith(f"{keys[0]}.") and key.endswith(f".{keys[1]}"):
            entries.append(key)
            if len(keys) == 2 and str(OmegaConf.select(written.config, key)) == value:
                return key
    return ".".join([*entries, *keys[2:]] if len(entries) == 1 else keys)
