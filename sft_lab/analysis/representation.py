"""Hidden states of each source's queries: projections and separability."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_lab.data.hash_rank import hash_rank
from sft_lab.data.tokenized_source import TokenizedSource
from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import batches_longest_first
from sft_lab.evaluation.generation.native import evaluating
from sft_lab.metrics.paired import Difference, paired_means, paired_shares
from sft_lab.metrics.score import Score, accuracy, mean_score
from sft_lab.model.logits import decoder_of
from sft_lab.model.qlora import plain_causal_lm
from sft_lab.terminal import counted

_FOLDS = 5
_COMPONENTS = 50  # that t-SNE is given, as its authors do
_LAYER = 15  # the paper's

States = NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """The prompt of a conversation's first answer, as token ids."""

    source: str
    sample_id: str
    input_ids: tuple[int, ...]


def choose_queries(
    loaded: Mapping[str, TokenizedSource], num_queries: int, seed: int
) -> list[Query]:
    """Return a number of distinct queries of each source, chosen by hash rank.

    Args:
        loaded: The tokenised sources, by name.
        num_queries: Queries of each source.
        seed: Seed of the rank.

    Raises:
        RequestError: If a source has fewer.
    """
    if num_queries < 1:
        raise RequestError(f"--num_queries must be {_FOLDS} or more, got {num_queries}.")
    found: list[Query] = []
    for name, source in loaded.items():
        different: dict[tuple[int, ...], str] = {}
        for index in hash_rank(source.sample_ids, seed):
            row = source.rows[index]
            end = row.spans[0][0]
            prompt = tuple(int(token) for token in row.input_ids[:end])
            if prompt:
                different.setdefault(prompt, source.sample_ids[index])
            if len(different) == num_queries:
                break
        if len(different) < num_queries:
            found_here = counted(len(different), "different query", "different queries")
            raise RequestError(f"--num_queries: {name} has {found_here}, got {num_queries}.")
        found += [Query(name, sample_id, prompt) for prompt, sample_id in different.items()]
    return found


def check_sizes(sources: Sequence[str], perplexity: float) -> None:
    """Check, before loading a model, that there are enough queries for the probe and t-SNE.

    Args:
        sources: Each query's source.
        perplexity: That of t-SNE; its authors advise below a third of the queries.

    Raises:
        RequestError: If there is one source only, or a number does not suit the others.
    """
    counts = Counter(sources)
    if len(counts) < 2:
        raise RequestError(f"RUN trains on one source only, {sources[0]}; represent compares them.")
    if min(counts.values()) < _FOLDS:
        raise RequestError(
            f"--num_queries must be {_FOLDS} or more, got {min(counts.values())}: "
            "the probe is trained on some and tested on others."
        )
    if not 1 < perplexity < len(sources) / 3:
        raise RequestError(
            f"--perplexity must be above 1 and below a third of the {len(sources)} queries, "
            f"got {perplexity:g}."
        )


def default_layer(num_layers: int) -> int:
    """Return the paper's layer, 15, or the middle one of a model of fewer than 30.

    >>> default_layer(32), default_layer(4)
    (15, 2)
    """
    return min(_LAYER, max(1, num_layers // 2))


@torch.no_grad()
def hidden_states(
    model: Any, queries: Sequence[Sequence[int]], layer: int, batch_size: int = 16
) -> States:
    """Return a layer's output at the last token of each query, where its answer begins.

    That token is the template's, the same for every query, so it does not reveal the source;
    it has seen the whole query. A mean over all tokens would reveal sources by their words alone.

    Args:
        model: A causal language model of transformers, adapters included.
        queries: Token ids of each query, not padded.
        layer: From 1, the first layer's output, to the number of layers, whose output has passed
            the final norm. The embeddings are the same for every query.
        batch_size: Queries per forward pass; it does not change the result.

    Returns:
        float32 ``[N, H]``, in the order of the queries.

    Raises:
        RequestError: If the model has no such layer.
    """
    causal_lm = plain_causal_lm(model)
    num_layers = causal_lm.config.get_text_config().num_hidden_layers
    if not 1 <= layer <= num_layers:
        raise RequestError(f"--layer must be 1 to {num_layers}, got {layer}.")
    found: list[Tensor | None] = [None] * len(queries)
    with evaluating(model):
        for places in batches_longest_first([len(query) for query in queries], batch_size):
            batch = [torch.tensor(queries[place]) for place in places]
            # Padding is on the right, so that no token of a query attends to it.
            input_ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
            states = decoder_of(causal_lm)(
                input_ids=input_ids.to(causal_lm.device),
                position_ids=positions.to(causal_lm.device),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states[layer]
            for row, place in enumerate(places):
                found[place] = states[row, len(queries[place]) - 1].float().cpu()
    return torch.stack([state for state in found if state is not None]).numpy()


def principal_components(states: States) -> tuple[States, float]:
    """Project states on the two directions in which they vary most.

    Returns:
        float32 ``[N, 2]``, and the share of their variance that lies in the two.
    """
    from sklearn.decomposition import PCA

    projection = PCA(n_components=2, random_state=0)
    places = projection.fit_transform(states).astype(np.float32)
    return places, float(projection.explained_variance_ratio_.sum())


def tsne(states: States, perplexity: float, seed: int) -> States:
    """Project states so that near ones stay near; distances and sizes of groups say nothing.

    Source: van der Maaten and Hinton (2008), "Visualizing Data using t-SNE", Journal of Machine
    Learning Research 9.

    Args:
        states: float32 ``[N, H]``.
        perplexity: How many neighbours each state has, below N / 3 as its authors advise.
        seed: Seed of the projection.

    Returns:
        float32 ``[N, 2]``.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(_COMPONENTS, *states.shape)
    reduced = PCA(n_components=components, random_state=seed).fit_transform(states)
    projection = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return np.asarray(projection.fit_transform(reduced), np.float32)


@dataclass(frozen=True)
class Separability:
    """Separability of sources by the hidden states of queries, before and after training.

    Attributes:
        probe: Whether a linear classifier names the source of a query that it has not been trained
            on: the share, before and after.
        probe_change: After minus before.
        silhouettes: How much nearer a query is to its own source than to the next, -1 to 1: the
            mean of each source, and ``all``, before and after.
        silhouette_change: After minus before, of each.
    """

    probe: tuple[Score, Score]
    probe_change: Difference
    silhouettes: Mapping[str, tuple[Score, Score]]
    silhouette_change: Mapping[str, Difference]


def separability(before: States, after: States, sources: Sequence[str], seed: int) -> Separability:
    """Measure how separable the sources are.

    States are standardised by feature. The probe is a logistic regression, each query judged by one
    that was trained on the other four fifths; its penalty is scikit-learn's.

    Source: Alain and Bengio (2017), "Understanding Intermediate Layers Using Linear Classifier
    Probes"; Rousseeuw (1987), "Silhouettes", Journal of Computational and Applied Mathematics 20.

    Args:
        before: float32 ``[N, H]``.
        after: The same queries' states, in the same order.
        sources: Each query's source.
        seed: Seed of the folds.
    """
    counts = Counter(sources)
    named = [_probe(states, sources, seed) for states in (before, after)]
    near = [_silhouettes(states, sources) for states in (before, after)]
    members = {name: [place for place, s in enumerate(sources) if s == name] for name in counts}
    members["all"] = list(range(len(sources)))
    silhouettes, changes = {}, {}
    for name, places in members.items():
        old, new = ([values[place] for place in places] for values in near)
        silhouettes[name] = (mean_score(old), mean_score(new))
        changes[name] = paired_means(old, new)
    return Separability(
        probe=(accuracy(named[0]), accuracy(named[1])),
        probe_change=paired_shares(*named),
        silhouettes=silhouettes,
        silhouette_change=changes,
    )


def _standardised(states: States) -> States:
    from sklearn.preprocessing import StandardScaler

    return np.asarray(StandardScaler().fit_transform(states), np.float32)


def _probe(states: States, sources: Sequence[str], seed: int) -> list[bool]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    predicted = cross_val_predict(probe, states, list(sources), cv=folds)
    return [bool(guess == source) for guess, source in zip(predicted, sources, strict=True)]


def _silhouettes(states: States, sources: Sequence[str]) -> list[float]:
    from sklearn.metrics import silhouette_samples

    found = silhouette_samples(_standardised(states), list(sources))
    return [float(value) for value in found]


@dataclass(frozen=True)
class Representation:
    """A run's queries inside its model, before training and after one of its stages.

    Attributes:
        run_id: The MLflow run.
        run_name: Its name.
        stage: The stage after which the model was taken.
        layer: The layer, from 1.
        num_layers: How many the model has.
        perplexity: That of t-SNE.
        seed: Seed of the queries, of the folds and of t-SNE.
        queries: The queries, source by source.
        components: Projections on two principal components before and after, ``[N, 2]`` each.
        explained: The share of the variance that lies in these, before and after.
        neighbours: Projections by t-SNE before and after, ``[N, 2]`` each.
        separability: Separability of the sources.
    """

    run_id: str
    run_name: str
    stage: str
    layer: int
    num_layers: int
    perplexity: float
    seed: int
    queries: tuple[Query, ...]
    components: tuple[States, States]
    explained: tuple[float, float]
    neighbours: tuple[States, States]
    separability: Separability

    @property
    def sources(self) -> list[str]:
        """Each query's source."""
        return [query.source for query in self.queries]

    def to_json(self) -> dict[str, Any]:
        """Return everything except the coordinates of single queries."""
        settings = ("run_id", "run_name", "stage", "layer", "num_layers", "perplexity", "seed")
        found = asdict(self.separability)
        return {
            **{name: getattr(self, name) for name in settings},
            "queries": {name: self.sources.count(name) for name in dict.fromkeys(self.sources)},
            "explained": list(self.explained),
            **found,
        }

    def to_csv(self) -> str:
        """Return the coordinates of each query before and after training, one row each."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["source", "sample_id", "moment", "pca_x", "pca_y", "tsne_x", "tsne_y"])
        for moment, components, neighbours in zip(
            ("before", "after"), self.components, self.neighbours, strict=True
        ):
            for query, linear, near in zip(self.queries, components, neighbours, strict=True):
                places = [f"{value:.4f}" for value in (*linear, *near)]
                writer.writerow([query.source, query.sample_id, moment, *places])
        return text.getvalue()
