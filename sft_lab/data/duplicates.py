"""Near duplicates: samples that repeat another one almost word for word."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from sft_lab.data.contamination import normalized_words

_SHINGLE = 5  # words
_NUM_PERM = 128  # values of a signature
_MAX_MISS = 0.01  # target: share of pairs at the threshold that are never compared
_SLACK = 0.2  # for similarities estimated from signatures: at least four standard deviations


def near_duplicates(texts: Mapping[str, str], threshold: float) -> dict[str, str]:
    """Find the samples to leave out so that the rest has no near duplicates.

    Samples are visited in order of their ids, which are content hashes, so the result does not
    depend on the mapping's order or the machine. One that resembles samples kept so far is left
    out in favour of the most similar of them.

    Similarity is the Jaccard index of the sets of 5 consecutive ``normalized_words``; a text of
    fewer words is the set of its words, and one without words has no duplicates. It compares
    wording, not meaning: the same question with other numbers is similar, a paraphrase is not.
    Candidates are samples whose MinHash signatures agree in a band (LSH); they are compared
    exactly, so nothing below the threshold is left out. A pair at the threshold is missed with
    a probability of at most 1 % (4 % at 0.025, more below), a more similar one with less. Each
    sample takes 512 bytes of memory, similar ones somewhat more.

    Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman &
    Ullman, Mining of Massive Datasets, section 3.4.

    Args:
        texts: Text by sample id.
        threshold: Least similarity of near duplicates, in (0, 1].

    Returns:
        Ids of kept samples by the id of the sample to leave out, in order of the latter.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"The similarity of near duplicates must lie in (0, 1], got {threshold}. "
            "1 leaves out samples with the same 5-word sequences only."
        )
    sample_ids, signatures = _signatures(texts)
    groups = _groups(signatures, _band_length(threshold))
    kept: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # rows by band and group
    left_out: dict[str, str] = {}
    for row, sample_id in enumerate(sample_ids):
        keys = [(band, group) for band, group in enumerate(groups[:, row].tolist()) if group >= 0]
        others = sorted({other for key in keys for other in kept[key]})
        estimates = (signatures[others] == signatures[row]).mean(axis=1)
        close = [
            sample_ids[other]
            for other, estimate in zip(others, estimates, strict=True)
            if estimate >= threshold - _SLACK
        ]
        similar = _similarities(sample_id, close, texts)
        closest = max(similar, key=similar.__getitem__, default=None)  # the first of equals
        if closest is not None and similar[closest] >= threshold:
            left_out[sample_id] = closest
        else:
            for key in keys:
                kept[key].append(row)
    return left_out


def _signatures(texts: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
    """Return the sorted ids of the samples that have words, and their signatures, uint32."""
    # Imports scipy, which takes most of a second, and runs without this filter do not need it.
    from datasketch import MinHash
    from datasketch.hashfunc import sha1_hash32

    ordered = sorted(texts)
    # Everything that a signature depends on is named, in case the library's defaults change.
    sketches = MinHash.generator(
        ([shingle.encode() for shingle in _shingles(texts[sample_id])] for sample_id in ordered),
        num_perm=_NUM_PERM,
        seed=1,
        hashfunc=sha1_hash32,
        scheme="affine32",
    )
    sample_ids: list[str] = []
    signatures = np.empty((len(ordered), _NUM_PERM), np.uint32)
    for sample_id, sketch in zip(ordered, sketches, strict=True):
        if not sketch.is_empty():
            signatures[len(sample_ids)] = sketch.hashvalues
            sample_ids.append(sample_id)
    return sample_ids, signatures[: len(sample_ids)]


def _band_length(threshold: float) -> int:
    """Return the longest band that misses at most ``_MAX_MISS`` of the pairs, or else 1."""
    lengths = (
        length
        for length in range(_NUM_PERM // 2, 1, -1)
        if (1 - threshold**length) ** (_NUM_PERM // length) <= _MAX_MISS
    )
    return next(lengths, 1)


def _groups(signatures: np.ndarray, length: int) -> np.ndarray:
    """Number, for each band, the groups of samples that agree in it; -1 for a group of one.

    ``MinHashLSH`` finds the same groups, but keeps 7 kB of sets per sample.
    """
    groups = np.empty((_NUM_PERM // length, len(signatures)), np.int64)
    for band in range(len(groups)):
        values = np.ascontiguousarray(signatures[:, band * length : (band + 1) * length])
        keys = values.view(np.dtype((np.void, values.itemsize * length))).ravel()
        _, group, size = np.unique(keys, return_inverse=True, return_counts=True)
        groups[band] = np.where(size[group] > 1, group, -1)
    return groups


def _similarities(sample_id: str, others: list[str], texts: Mapping[str, str]) -> dict[str, float]:
    if not others:
        return {}
    shingles = _shingles(texts[sample_id])
    return {other: _jaccard(shingles, _shingles(texts[other])) for other in others}


def _jaccard(a: set[str], b: set[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _shingles(text: str) -> set[str]:
    words = normalized_words(text)
    runs = {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}
    return runs or set(words)
