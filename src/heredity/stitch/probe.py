"""Probes on a few features or on whole vectors, and what is left of them in another model (Chen et al. 2025, 3.2).

A probe of the source model A reads mean activations over a text. In the target model B it can be used as it is, on
vectors brought down to A and through A's SAE, or refitted there on the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from heredity.sae.model import SAE
from heredity.stitch.intervals import Estimate, balanced_accuracy, proportion, roc_auc
from heredity.stitch.text_features import Dictionary, Vectors, means

SIZES = (1, 2, 5, 10, 20, 50)
"""Numbers of features that sparse probes are made of."""

Arm = Literal["source", "native", "unchanged", "refitted", "random", "dense_source", "dense_native", "dense_unchanged"]
"""`source`: A's probe on A. `native`: B's own SAE on B. On B through A's SAE: `unchanged` (A's features and weights),
`refitted` (A's features), `random` (random ones, refitted). `dense_*`: all dimensions of the vectors instead."""


class Probe(NamedTuple):
    """score = X[:, features] weights + bias; above 0 says that a text is of the class."""

    features: np.ndarray
    """int64 [k]: columns it reads."""
    weights: np.ndarray
    """float64 [k]."""
    bias: float
    """Added to every score."""

    def scores(self, X: csr_array | np.ndarray) -> np.ndarray:
        """Scores float64 [texts] of means X [texts, width]; those of a logistic regression, so log odds."""
        return _columns(X, self.features) @ self.weights + self.bias


class Score(NamedTuple):
    """How well a probe does on texts that it was not fitted on."""

    accuracy: Estimate
    """Share of right answers, with the interval of Clopper & Pearson."""
    balanced_accuracy: Estimate
    """Mean over both classes of the share of right answers."""
    auc: Estimate
    """Area under the ROC curve: does not depend on where the scores are cut."""


class Row(NamedTuple):
    """One probe of one arm."""

    arm: Arm
    """What is tried."""
    k: int
    """Features that the probe reads, or dimensions of a dense one."""
    draw: int
    """Number of the draw of random features; 0 for all other arms."""
    score: Score
    """On the test texts."""


class Views(NamedTuple):
    """Means over the same texts as every arm sees them; row n of each is text n."""

    source: csr_array
    """Activations of A's SAE on A, [texts, d_sae]."""
    carried: csr_array
    """Activations of A's SAE on what B has, brought down to A, [texts, d_sae]."""
    native: csr_array
    """Activations of B's own SAE on B, [texts, d_sae of B]."""
    dense_source: np.ndarray
    """Vectors of A, float64 [texts, d_A]."""
    dense_carried: np.ndarray
    """Vectors of B brought down to A, float64 [texts, d_A]."""
    dense_native: np.ndarray
    """Vectors of B, float64 [texts, d_B]."""


def views(
    texts: Sequence[str],
    source: Callable[[Sequence[str]], Iterable[Vectors]],
    target: Callable[[Sequence[str]], Iterable[Vectors]],
    saes: tuple[SAE, SAE],
    down: Callable[[Tensor], Tensor],
) -> Views:
    """What the arms see of texts, in one pass through each model.

    source, target: give the vectors of A and of B at the tokens of texts (see `text_vectors`). saes: of A and of B.
    down: brings vectors [n, d_B] to A's space; affine. Raises as `means` does.
    """
    ours, theirs = saes
    a = means(source(texts), len(texts), [Dictionary(ours)])
    b = means(target(texts), len(texts), [Dictionary(ours, down), Dictionary(theirs)])
    # The mean of affine images is the image of the mean.
    brought = down(torch.from_numpy(b.x).to(ours.W_enc)).double().cpu().numpy()
    return Views(a.features[0], b.features[0], b.features[1], a.x, brought, b.x)


def select(X: csr_array | np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """The k features with the largest E[f | class] - E[f | others], signed, best first (eq. 7); int64 [k].

    X: means [texts, d_sae]. y: bool [texts]. Ties go to the lower index. Raises ValueError when a class is missing or
    there are fewer than k features.
    """
    y = _checked(X, y)
    if not 1 <= k <= _size(X)[1]:
        raise ValueError(f"k={k} features cannot be chosen of {_size(X)[1]}; choose 1 to {_size(X)[1]}")
    difference = X[y].mean(axis=0) - X[~y].mean(axis=0)
    return np.argsort(-np.asarray(difference, np.float64), kind="stable")[:k]


def fit_probe(
    X: csr_array | np.ndarray, y: np.ndarray, features: np.ndarray | None = None, strength: float = 1.0
) -> Probe:
    """Logistic regression on some columns of X [texts, width], all of them unless `features` int [k] are given.

    Columns are brought to mean 0 and variance 1 for the fit, so that no feature is favored for its scale, and the
    weights are told for X as it is. strength: of the L2 penalty on weights so scaled. The fit has no random part.
    Raises ValueError when a class is missing; ImportError without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ImportError("probes need scikit-learn; pip install 'heredity[stitch]'") from None
    y = _checked(X, y)
    features = np.arange(_size(X)[1]) if features is None else np.asarray(features, np.int64)
    columns = _columns(X, features)
    mean, deviation = columns.mean(0), columns.std(0)
    deviation[deviation <= 1e-12 * np.abs(mean)] = np.inf
    fitted = LogisticRegression(C=1 / strength, max_iter=2000).fit((columns - mean) / deviation, y)
    weights = np.asarray(fitted.coef_[0], np.float64) / deviation
    return Probe(features, weights, float(fitted.intercept_[0] - mean @ weights))


def sparse_probe(X: csr_array | np.ndarray, y: np.ndarray, k: int) -> Probe:
    """A probe on the k features that `select` chooses. Raises as `select` and `fit_probe` do."""
    return fit_probe(X, y, select(X, y, k))


def judge(probe: Probe, X: csr_array | np.ndarray, y: np.ndarray) -> Score:
    """How well a probe does on means X [texts, width] with the truth y bool [texts], with 95 % intervals."""
    y = _checked(X, y)
    scores = probe.scores(X)
    guess = scores > 0
    hits = int((guess == y).sum())
    return Score(proportion(hits, len(y)), balanced_accuracy(guess, y), roc_auc(scores, y))


def probing(
    train: tuple[Views, np.ndarray],
    test: tuple[Views, np.ndarray],
    sizes: Sequence[int] = SIZES,
    draws: int = 5,
    seed: int = 0,
) -> list[Row]:
    """Every arm at every size, fitted on the training texts and judged on the others.

    train, test: what the arms see of the texts, and bool [texts]. draws: sets of random features a size, drawn with
    `seed` from those of A's SAE that fire on a training text in B. Raises as `select` and `fit_probe` do, and
    ValueError when fewer features than the largest size fire.
    """
    (seen, y), (held, truth) = train, test
    rng, rows = np.random.default_rng(seed), []
    live = np.flatnonzero(np.diff(seen.carried.tocsc().indptr))
    if sizes and len(live) < max(sizes):
        raise ValueError(f"only {len(live)} features fire in the target, not {max(sizes)}; take smaller sizes")

    def add(arm: Arm, probe: Probe, X: csr_array | np.ndarray, draw: int = 0) -> None:
        rows.append(Row(arm, len(probe.features), draw, judge(probe, X, truth)))

    for k in sizes:
        ours = sparse_probe(seen.source, y, k)
        add("source", ours, held.source)
        add("unchanged", ours, held.carried)
        add("refitted", fit_probe(seen.carried, y, ours.features), held.carried)
        add("native", sparse_probe(seen.native, y, k), held.native)
        for draw in range(draws):
            some = rng.choice(live, k, replace=False)
            add("random", fit_probe(seen.carried, y, some), held.carried, draw)
    ours = fit_probe(seen.dense_source, y)
    add("dense_source", ours, held.dense_source)
    add("dense_unchanged", ours, held.dense_carried)
    add("dense_native", fit_probe(seen.dense_native, y), held.dense_native)
    return rows


def probe_task(
    seen: Views,
    texts: np.ndarray,
    y: np.ndarray,
    test: np.ndarray,
    sizes: Sequence[int] = SIZES,
    draws: int = 5,
    seed: int = 0,
) -> tuple[list[Row], list[int]]:
    """`probing` of one class against others, at all sizes for which enough features fire; and the sizes left out.

    seen: views of a set of texts. texts: int64 [n], the rows of them that belong to the task (see `BinaryTask`). y,
    test: bool [n], the class and whether the text is held out. The largest possible size is the smaller of the number
    of source features that fire in the target and of all native features.
    """
    every: tuple[Any, ...] = seen
    train, held = ((Views._make(part[texts[which]] for part in every), y[which]) for which in (~test, test))
    live = int((np.diff(train[0].carried.tocsc().indptr) > 0).sum())
    possible = [k for k in sizes if k <= min(live, _size(train[0].native)[1])]
    return probing(train, held, possible, draws, seed), sorted(set(sizes) - set(possible))


class MeanRow(NamedTuple):
    """The probes of one arm at one size, averaged over draws of random features."""

    arm: Arm
    """What is tried."""
    k: int
    """Features or dimensions read."""
    score: Score
    """Means of the values and of the ends of their intervals."""
    draws: int
    """Probes averaged; 1 for all arms but `random`."""
    spread: float | None
    """Standard deviation of the balanced accuracy between draws; None for fewer than two."""


def mean_over_draws(rows: Sequence[Row]) -> list[MeanRow]:
    """Rows of one class with the draws of each arm and size averaged, in the order of their first row."""
    groups: dict[tuple[Arm, int], list[Score]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.k), []).append(row.score)
    averaged = []
    for (arm, k), scores in groups.items():
        means = (np.array([getattr(score, name) for score in scores]).mean(0).tolist() for name in Score._fields)
        balanced = [score.balanced_accuracy.value for score in scores]
        spread = float(np.std(balanced, ddof=1)) if len(scores) > 1 else None
        averaged.append(MeanRow(arm, k, Score(*(Estimate(*mean) for mean in means)), len(scores), spread))
    return averaged


def _columns(X: csr_array | np.ndarray, features: np.ndarray) -> np.ndarray:
    """Columns of X as float64 [texts, k]."""
    return X[:, features] if isinstance(X, np.ndarray) else X[:, features].toarray()


def _size(X: Any) -> tuple[int, int]:
    """Rows and columns; scipy's types leave them open."""
    return X.shape


def _checked(X: csr_array | np.ndarray, y: np.ndarray) -> np.ndarray:
    """y as bool; ValueError unless both classes occur and every row has a label."""
    y = np.asarray(y, bool)
    if y.shape != (_size(X)[0],) or not 0 < y.sum() < len(y):
        raise ValueError(
            f"y of shape {y.shape} marks {int(y.sum())} of {_size(X)[0]} texts; one bool a text is needed, some of "
            "them of the class and some not"
        )
    return y
