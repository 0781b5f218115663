"""Check that a base can read a run's rows and prompts."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.model.limits import ModelLimits, model_limits
from sft_lab.training.data_modules import StagedDataModule


def check_limits(data: StagedDataModule, base: str) -> None:
    """Check token ids and lengths of rows and prompts; a model would fail at the first of them.

    Args:
        data: The stages, set up.
        base: The base.

    Raises:
        RequestError: If an id has no embedding, or a row or prompt is too long for the positions.
    """
    limits = model_limits(base)
    corpus, suite = data.corpus, data.evaluation
    if corpus.tokenizer_name != base:
        _check_vocabulary(corpus.renderer.tokenizer, corpus.tokenizer_name, base)
    special = [corpus.renderer.pad_token_id, *corpus.renderer.stop_token_ids]
    _check_ids("its special tokens", special, limits, base)
    for name, source in corpus.loaded.items():
        where = f"corpus.sources.{name}"
        _check_ids(f"the rows of {where}", [source.rows.largest_id], limits, base)
        longest = int(source.num_tokens.max(initial=0))
        if limits.num_positions is not None and longest > limits.num_positions:
            raise RequestError(
                f"corpus.max_length: a row of {where} has {longest:,} tokens, and model.base "
                f"{base} has {limits.num_positions:,} positions; set corpus.max_length to "
                f"{limits.num_positions} or less."
            )
    for name, prompts in suite.prompts(corpus.renderer).items():
        where = f"evaluation.benchmarks.{name}"
        ids = [max(prompt, default=0) for prompt in prompts.token_ids]
        _check_ids(f"the prompts of {where}", ids, limits, base)
        answer = suite.benchmarks[name].max_new_tokens
        longest = max(map(len, prompts.token_ids), default=0) + answer
        if limits.num_positions is not None and longest > limits.num_positions:
            raise RequestError(
                f"{where}: a prompt and its answer of up to {answer} tokens (max_new_tokens) take "
                f"{longest:,} positions, and model.base {base} has {limits.num_positions:,}; lower "
                "max_new_tokens, or leave the benchmark out."
            )
    for name, pairs in suite.references(corpus.renderer).items():
        where = f"evaluation.benchmarks.{name}"
        known = [pair for pair in pairs if pair is not None]
        ids = [max(answer, default=0) for _, answer in known]
        _check_ids(f"the reference answers of {where}", ids, limits, base)
        longest = max((len(prompt) + len(answer) - 1 for prompt, answer in known), default=0)
        if limits.num_positions is not None and longest > limits.num_positions:
            raise RequestError(
                f"{where}: a prompt and its reference answer take {longest:,} positions, and "
                f"model.base {base} has {limits.num_positions:,}; set evaluation.answer_loss to "
                "false, or leave the benchmark out."
            )


def _check_vocabulary(tokenizer: Any, name: str, base: str) -> None:
    """Refuse a tokenizer in which a token of the base's own has another id."""
    try:
        own = load_tokenizer(base).get_vocab()
    except RequestError:  # the base comes without one
        return
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=itemgetter(1)):
        if own.get(token, token_id) != token_id:
            raise RequestError(
                f"corpus.tokenizer: {name} gives {token!r} the id {token_id}, and the tokenizer of "
                f"model.base {base} the id {own[token]}; name one of the same vocabulary, or leave "
                "corpus.tokenizer out."
            )


def _check_ids(what: str, ids: Iterable[int], limits: ModelLimits, base: str) -> None:
    largest = max(ids, default=0)
    if largest >= limits.num_ids:
        raise RequestError(
            f"corpus.tokenizer: {what} use token id {largest}, and model.base {base} has "
            f"embeddings of the ids below {limits.num_ids}; name the tokenizer that "
            "belongs to the base, or a base whose embedding was enlarged."
        )
