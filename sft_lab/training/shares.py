"""Shares: how much of a source a stage takes, and which rows those are."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import register_type
from numpy.typing import NDArray

from sft_lab.errors import RequestError

_FIX = "Write a number or a fraction such as 1/16, {rows: 500} or {tokens: 1000000}."


@dataclass(frozen=True)
class Share:
    """How much of a source: a multiple of it, a count of rows, or a budget of tokens.

    Attributes:
        kind: The unit of the amount.
        amount: 0 or more.
        written: The value as the config has it; not compared.
    """

    kind: Literal["multiple", "rows", "tokens"]
    amount: Fraction
    written: Any = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return the share as the config has it."""
        return str(self.written)


def parse_share(value: Any) -> Share:
    """Parse a share as a config writes it; a parsed one is returned as it is.

    >>> parse_share("1/16").amount
    Fraction(1, 16)
    >>> parse_share({"rows": 500}).kind
    'rows'

    Args:
        value: A number, ``a/b``, ``{rows: n}`` or ``{tokens: n}``.

    Raises:
        ValueError: If the value is none of these, or negative; the parser adds the key.
    """
    if isinstance(value, Share):
        return value
    if isinstance(value, Mapping):
        if len(value) != 1 or next(iter(value)) not in ("rows", "tokens"):
            raise ValueError(f"a share has one key, rows or tokens, got {dict(value)}. {_FIX}")
        kind, amount = next(iter(value.items()))
        # YAML reads 1e6 as a float.
        is_whole = isinstance(amount, int) or (isinstance(amount, float) and amount.is_integer())
        if isinstance(amount, bool) or not is_whole or amount < 0:
            raise ValueError(f"{kind} must be an integer, 0 or more, got {amount}.")
        return Share("rows" if kind == "rows" else "tokens", Fraction(amount), dict(value))
    # Through str, so that 0.1 is one tenth and not its nearest binary fraction.
    text = str(value).replace(" ", "")
    try:
        # An exponent of three digits and more is not a share, and costs Fraction minutes.
        multiple = Fraction("" if re.search(r"e[+-]?\d{3}", text, re.IGNORECASE) else text)
    except ZeroDivisionError:
        raise ValueError(f"a share cannot divide by zero, got {value}. {_FIX}") from None
    except ValueError:
        raise ValueError(f"not a share, got {value!r}. {_FIX}") from None
    if multiple < 0:
        raise ValueError(f"a share must be 0 or more, got {value}. 0 takes no rows.")
    return Share("multiple", multiple, value)


register_type(Share, serializer=lambda share: share.written, deserializer=parse_share)


@dataclass(frozen=True)
class Size:
    """The trainable part of a source."""

    rows: int
    tokens: int


def weighed(
    key: str,
    shares: Mapping[str, Share],
    sizes: Mapping[str, Size],
    *,
    total: Share | None,
    temperature: float | None,
) -> dict[str, Share]:
    """Turn the shares of a mixture into counts of rows or tokens, where a stage weighs them.

    With a total, shares are weights: of 1 and 3 the sources get a quarter and three quarters of it.
    With a temperature, weights are the amounts that the shares come to, to the power of
    1 / temperature: at 1 sources keep their proportions, above it small ones gain; without a total
    the mixture stays as large as its shares make it.

    Args:
        key: The mixture's config key, for the error message.
        shares: The mixture's shares that are not 0.
        sizes: By source.
        total: Rows or tokens of the whole mixture.
        temperature: Above 0.

    Returns:
        Shares by source; rows and tokens add up to the total, the largest remainders rounded up.

    Raises:
        RequestError: If a share is a count, and so no weight.

    Source:
        Temperature: Devlin et al. 2019, multilingual BERT; Raffel et al. 2020, T5, section 3.5.2.
    """
    if total is None and temperature is None:
        return dict(shares)
    for source, share in shares.items():
        if share.kind != "multiple":
            raise RequestError(
                f"{key}.{source} is a count of {share.kind}, but a stage with total or temperature "
                "weighs its sources; write a number."
            )
    unit: Literal["rows", "tokens"] = "tokens" if total and total.kind == "tokens" else "rows"
    weights = {source: float(share.amount) for source, share in shares.items()}
    whole = int(total.amount) if total else 0
    if temperature is not None:
        amounts = {source: w * getattr(sizes[source], unit) for source, w in weights.items()}
        whole = whole or math.floor(math.fsum(amounts.values()))
        # Over the largest, so that no temperature is too low for a float.
        largest = max(amounts.values(), default=1)
        weights = {source: (a / largest) ** (1 / temperature) for source, a in amounts.items()}
    quotas = {s: whole * w / math.fsum(weights.values()) for s, w in weights.items()}
    counts = {source: math.floor(quota) for source, quota in quotas.items()}
    left = whole - sum(counts.values())
    for source in sorted(quotas, key=lambda s: (counts[s] - quotas[s], s))[:left]:
        counts[source] += 1
    return {source: Share(unit, Fraction(count)) for source, count in counts.items()}


def take(
    share: Share, ranked: Sequence[int], num_tokens: Sequence[int] | NDArray[np.integer[Any]]
) -> list[int]:
    """Return the rows of a share in rank order, again from the front where it exceeds the source.

    Args:
        share: What to take.
        ranked: The source's row indices in rank order.
        num_tokens: Tokens of each row, indexed by row.

    Returns:
        ``floor(n * multiple)`` rows, the count asked for, or the fewest rows that reach the budget.
    """
    if not ranked:
        return []
    if share.kind == "tokens":
        rows: list[int] = []
        total = 0
        while total < share.amount:
            row = ranked[len(rows) % len(ranked)]
            rows.append(row)
            total += int(num_tokens[row])
        return rows
    count = math.floor(share.amount * (len(ranked) if share.kind == "multiple" else 1))
    return [ranked[i % len(ranked)] for i in range(count)]
