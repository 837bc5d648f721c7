"""Probes on a few features or on whole vectors, in their own and in another model (Chen et al. 2025, section 3.2).

A probe of the source model A reads mean activations over a text. In the target model B it can be used unchanged, on
vectors mapped down to A and through A's SAE, or refitted there on the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.sparse import csr_array, vstack
from scipy.stats import binomtest, norm, rankdata
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from heredity.lm.activations import activations, blocks_at_once
from heredity.lm.reading import reading_of
from heredity.sae.model import SAE
from heredity.stitch.transfer import sparse_codes
from heredity.study import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEVEL = 0.95  # coverage of intervals
Arm = Literal["source", "native", "unchanged", "refitted", "random", "dense_source", "dense_native", "dense_unchanged"]
"""`source`: A's probe on A. `native`: B's own SAE on B. On B through A's SAE: `unchanged` (A's features and weights),
`refitted` (A's features), `random` (random ones, refitted). `dense_*`: all dimensions of the vectors instead."""
Vectors = tuple[Tensor, np.ndarray]
"""At the tokens of some whole texts: vectors, float32 [tokens, d_in], and each one's text by number, int64 [tokens]."""


Codes = Callable[[Tensor], csr_array]
"""An SAE as it is read: vectors [n, d_in] -> activations [n, d_sae], zeros not stored."""


def text_vectors(
    model: torch.nn.Module,
    hook_point: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    context_size: int,
    precision: Precision = "float32",
) -> Iterator[Vectors]:
    """Vectors of a causal model at all but the special tokens of each text's first `context_size`, longest texts first.

    Raises ValueError for a text without tokens.
    """
    special = list(tokenizer.all_special_ids)
    own = reading_of(model).prefix is None  # otherwise every row begins with that token already
    encoded: Any = tokenizer(list(texts), add_special_tokens=own, verbose=False)["input_ids"] if texts else []
    ids = [np.array(row[:context_size], np.int64) for row in encoded]
    for number, row in enumerate(ids):
        if np.isin(row, special).all():
            raise ValueError(f"text {number}, {texts[number][:40]!r}, has no token; leave out texts that are empty")
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    while order:
        longest = len(ids[order[0]])
        some, order = order[: blocks_at_once(longest)], order[blocks_at_once(longest) :]
        rows = [torch.from_numpy(ids[number]) for number in some]
        parts = [torch.from_numpy(~np.isin(ids[number], special)) for number in some]
        blocks, kept = (pad_sequence(each, batch_first=True) for each in (rows, parts))
        x = torch.cat(list(activations(model, hook_point, blocks.numpy(), precision)))
        yield x[kept.flatten().to(x.device)], np.repeat(some, kept.sum(1).numpy())


def means(stream: Iterable[Vectors], texts: int, *read: Codes) -> tuple[np.ndarray, list[csr_array]]:
    """Means over the tokens of each text: of vectors, float64 [texts, d_in], and of what each of `read` gives.

    Raises ValueError for a text without vectors.
    """
    order, dense, sparse = [], [], [[] for _ in read]
    for x, text in stream:
        present, row, count = np.unique(text, return_inverse=True, return_counts=True)
        average = csr_array((1 / count[row], (row, np.arange(len(row)))), shape=(len(present), len(row)))
        order.append(present)
        dense.append(average @ x.double().cpu().numpy())
        for codes, part in zip(read, sparse, strict=True):
            part.append(average @ codes(x))
    seen = np.concatenate(order) if order else np.zeros(0, np.int64)
    if not np.array_equal(np.sort(seen), np.arange(texts)) or not texts:
        raise ValueError(f"vectors of {len(seen)} texts were given for {texts} texts; give each text once and whole")
    place = np.argsort(seen)
    return np.concatenate(dense)[place], [csr_array(csr_array(vstack(part))[place]) for part in sparse]


class Views(NamedTuple):
    """Means over the same texts, one row per text, as the arms see them; `dense_*` are float64."""

    source: csr_array  # activations of A's SAE on A, [texts, d_sae]
    carried: csr_array  # activations of A's SAE on B's vectors mapped down to A, [texts, d_sae]
    native: csr_array  # activations of B's own SAE on B, [texts, d_sae of B]
    dense_source: np.ndarray  # vectors of A, [texts, d_A]
    dense_carried: np.ndarray  # vectors of B mapped down to A, [texts, d_A]
    dense_native: np.ndarray  # vectors of B, [texts, d_B]


def views(
    texts: Sequence[str],
    source: Callable[[Sequence[str]], Iterable[Vectors]],
    target: Callable[[Sequence[str]], Iterable[Vectors]],
    saes: tuple[SAE, SAE],
    down: Callable[[Tensor], Tensor],
) -> Views:
    """Views of texts for all arms, in one pass through each model. Raises as `means` does.

    source, target: give the vectors of A and of B at the tokens of texts. saes: of A and of B. down: affine, B to A.
    """
    ours, theirs = (partial(sparse_codes, sae) for sae in saes)
    a, (of_source,) = means(source(texts), len(texts), ours)
    b, (carried, native) = means(target(texts), len(texts), lambda x: ours(down(x)), theirs)
    # The mean of affine images is the image of the mean.
    mapped = down(torch.from_numpy(b).to(saes[0].W_enc)).double().cpu().numpy()
    return Views(of_source, carried, native, a, mapped, b)


class Probe(NamedTuple):
    """score = X[:, features] weights + bias; above 0 predicts the class."""

    features: np.ndarray  # int64 [k]: columns it reads
    weights: np.ndarray  # float64 [k]
    bias: float

    def scores(self, X: csr_array | np.ndarray) -> np.ndarray:
        """Log odds of a logistic regression, float64 [texts], for means X [texts, width]."""
        return _columns(X, self.features) @ self.weights + self.bias


def select(X: Any, y: np.ndarray, k: int) -> np.ndarray:
    """The k features with the largest E[f | class] - E[f | others], signed, best first (eq. 7); int64 [k].

    X: means [texts, d_sae], sparse or not. y: bool [texts], of both classes. Ties go to the lower index.
    """
    y = _labels(y, X.shape[0])
    difference = X[y].mean(axis=0) - X[~y].mean(axis=0)
    return np.argsort(-np.asarray(difference, np.float64), kind="stable")[:k]


def fit_probe(X: Any, y: np.ndarray, features: np.ndarray | None = None) -> Probe:
    """Logistic regression on some columns of X [texts, width], all of them unless `features` int [k] are given.

    Columns are standardized for the fit, with an L2 penalty of strength 1; weights are those for X itself. The fit has
    no random part. Raises ValueError when a class is missing.
    """
    from sklearn.linear_model import LogisticRegression  # an extra

    y = _labels(y, X.shape[0])
    features = np.arange(X.shape[1]) if features is None else np.asarray(features, np.int64)
    columns = _columns(X, features)
    mean, deviation = columns.mean(0), columns.std(0)
    deviation[deviation <= 1e-12 * np.abs(mean)] = np.inf
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit((columns - mean) / deviation, y)
    weights = np.asarray(fitted.coef_[0], np.float64) / deviation
    return Probe(features, weights, float(fitted.intercept_[0] - mean @ weights))


class Estimate(NamedTuple):
    """A number between 0 and 1 with its 95 % CI."""

    value: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """As columns of a table: `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def judge(probe: Probe, X: csr_array | np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Columns of a probe's `accuracy`, `balanced_accuracy` and `auc`, the area under the ROC curve, each with its CI.

    X: means of held-out texts [texts, width]. y: the truth, bool [texts].
    """
    scores = probe.scores(X)
    y = _labels(y, len(scores))
    guess = scores > 0
    found = {"balanced_accuracy": balanced_accuracy(guess, y), "auc": roc_auc(scores, y)}
    found["accuracy"] = proportion(int((guess == y).sum()), len(y))
    return {column: value for name, each in found.items() for column, value in each.columns(name).items()}


def probing(
    train: tuple[Views, np.ndarray], test: tuple[Views, np.ndarray], sizes: Sequence[int], draws: int, seed: int
) -> list[dict[str, Any]]:
    """Every arm at every possible size, fitted on the training texts and judged on the test texts.

    train, test: views of the texts, and bool [texts]. draws: sets of random features per size, of those of A's SAE that
    fire on a training text in B. Sizes beyond their number, or that of native features, are left out. Rows hold arm, k
    (features, or dimensions of a dense probe), draw (0 but for `random`), and the columns of `judge`.
    """
    (seen, y), (held, truth) = train, test
    rng, rows = np.random.default_rng(seed), []
    live = np.flatnonzero(np.diff(seen.carried.tocsc().indptr))

    def add(arm: Arm, probe: Probe, X: csr_array | np.ndarray, draw: int = 0) -> None:
        rows.append({"arm": arm, "k": len(probe.features), "draw": draw, **judge(probe, X, truth)})

    for k in (size for size in sizes if size <= min(len(live), seen.native.shape[1])):  # type: ignore[index]
        ours = fit_probe(seen.source, y, select(seen.source, y, k))
        add("source", ours, held.source)
        add("unchanged", ours, held.carried)
        add("refitted", fit_probe(seen.carried, y, ours.features), held.carried)
        add("native", fit_probe(seen.native, y, select(seen.native, y, k)), held.native)
        for draw in range(draws):
            some = rng.choice(live, k, replace=False)
            add("random", fit_probe(seen.carried, y, some), held.carried, draw)
    ours = fit_probe(seen.dense_source, y)
    add("dense_source", ours, held.dense_source)
    add("dense_unchanged", ours, held.dense_carried)
    add("dense_native", fit_probe(seen.dense_native, y), held.dense_native)
    return rows


def mean_over_draws(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `probing` with the draws of each arm and size averaged, in the order of their first row.

    `draws` is their number, `spread` the standard deviation of their balanced accuracies, None for fewer than two.
    """
    groups: dict[tuple[Arm, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["k"]), []).append(row)
    averaged = []
    for (arm, k), own in groups.items():
        means = {
            name: float(np.mean([row[name] for row in own])) for name in own[0] if name not in ("arm", "k", "draw")
        }
        spread = float(np.std([row["balanced_accuracy"] for row in own], ddof=1)) if len(own) > 1 else None
        averaged.append({"arm": arm, "k": k, "draws": len(own), "spread": spread, **means})
    return averaged


def _columns(X: csr_array | np.ndarray, features: np.ndarray) -> np.ndarray:
    """Columns of X as float64 [texts, k]."""
    return X[:, features] if isinstance(X, np.ndarray) else X[:, features].toarray()


def _labels(y: np.ndarray, texts: int) -> np.ndarray:
    """y as bool [texts]. Raises ValueError unless both classes occur and every text has a label."""
    y = np.asarray(y, bool)
    if y.shape != (texts,) or not 0 < y.sum() < texts:
        marked = f"y of shape {y.shape} marks {int(y.sum())} of {texts} texts"
        raise ValueError(f"{marked}; give one bool per text, some of them of the class and some not")
    return y


def proportion(hits: int, n: int, method: Literal["exact", "wilson"] = "exact") -> Estimate:
    """hits / n with the interval of Clopper & Pearson (1934) or of Wilson. Raises ValueError for n = 0."""
    ends = binomtest(hits, n).proportion_ci(LEVEL, method=method)
    return Estimate(hits / n, float(ends.low), float(ends.high))


def balanced_accuracy(guess: np.ndarray, y: np.ndarray) -> Estimate:
    """Mean over both classes of the share guessed right, bool [n]; Wilson intervals combined (Zou & Donner 2008)."""
    y = _labels(y, len(guess))
    each = [proportion(int((guess == y)[of].sum()), int(of.sum()), "wilson") for of in (y, ~y)]
    value = sum(one.value for one in each) / 2
    below, above = (sum((one.value - one[end]) ** 2 for one in each) ** 0.5 / 2 for end in (1, 2))
    return Estimate(value, max(0.0, value - below), min(1.0, value + above))


def roc_auc(scores: np.ndarray, y: np.ndarray) -> Estimate:
    """Probability that a case of the class scores higher than one outside it, ties half; scores float [n], y bool [n].

    The interval holds every θ with |AUC − θ| <= z √V(θ), V the variance of Hanley & McNeil (1982) with the mean of both
    class sizes in its correction terms (Newcombe 2006, method 5).
    """
    y = _labels(y, len(scores))
    m, n = int(y.sum()), int((~y).sum())
    value = float((rankdata(scores)[y].sum() - m * (m + 1) / 2) / (m * n))
    z, extra = float(norm.ppf((1 + LEVEL) / 2)), (m + n) / 2 - 1

    def outside(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return abs(value - theta) - z * variance**0.5

    # Where the value is 0 or 1 it solves the equation itself, but is not the end of the interval.
    inner = min(max(value, 1e-9), 1 - 1e-9)
    low: Any = brentq(outside, 0.0, inner) if value > 0 else 0.0
    high: Any = brentq(outside, inner, 1.0) if value < 1 else 1.0
    return Estimate(value, float(low), float(high))
