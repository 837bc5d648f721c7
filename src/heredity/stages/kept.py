"""The stage that asks what single features keep on the way through the maps of a stitch.

Whether they push the same next tokens; whether structural and semantic features differ in that; and whether those with
a job of their own keep it (Chen et al. 2025, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heredity.engine.stage import Stage, Work
from heredity.engine.store import Artifact, write_json
from heredity.features.strata import RARE_FIRINGS
from heredity.report.kept import (
    AttributionSummary,
    ClassSummary,
    DeactivationFeature,
    DeactivationSummary,
    EntropyFeature,
    EntropySummary,
    HeadSummary,
    KeptSummary,
    RankTestSummary,
    SplitSummary,
    quantiles,
    spread,
)
from heredity.sae.formats import read_sae
from heredity.stages.models import seed_of
from heredity.stages.newness import median
from heredity.stages.stitch import sides_of, stitch_blocks
from heredity.stages.text import tokenizer_of
from heredity.study import Study
from heredity.study.stitch import CarriedFeaturesConfig
from heredity.text.corpora import read_corpus

if TYPE_CHECKING:
    from heredity.stitch.attribution import Paired

KEPT = "kept.json"
KEPT_TABLE = "features.parquet"
_READ = 5_000  # documents that words are counted in, and that texts are taken from
_ABLATED = 10_000  # tokens, at most, that heads are looked at on


def kept_stage(
    study: Study, name: str, inputs: Mapping[str, Stage], corpora: Mapping[str, Stage], source_sae: Stage
) -> Stage | None:
    """What each feature of the source's SAE keeps in the target (`features.parquet`, `kept.json`); None if not asked.

    inputs: what `stitch_inputs` gives. corpora: the documents by name. source_sae: of the stitch's first width.
    """
    config = study.config.stitch[name]
    if not config.features.tokens:
        return None
    seed, prose = seed_of(study, "kept", name), config.features.corpus
    settings = {
        "features": config.features.model_dump(),
        "context_size": config.context_size,
        "precision": study.config.precision,
        "seed": seed,
    }
    read = {f"corpus:{corpus}": corpora[corpus] for corpus in ([prose] if prose else study.stitch_corpora(name))}

    def make(work: Work) -> None:
        told = _Inquiry(study, name, work, seed).told()
        write_json(work.folder / KEPT, told.model_dump(mode="json"))

    return Stage("kept", name, settings, {**inputs, **read, "source_sae": source_sae}, make)


def kept_of(artifact: Artifact) -> KeptSummary:
    """The figures of a `kept` artifact."""
    return KeptSummary.model_validate(artifact.json(KEPT))


class _Inquiry:
    """The parts of the stage, which share models, tokens and the columns of the table."""

    def __init__(self, study: Study, name: str, work: Work, seed: int) -> None:
        from heredity.stitch.attribution import Side, activation_correlation
        from heredity.stitch.transfer import transfer_sae

        config = study.config.stitch[name]
        self.config: CarriedFeaturesConfig = config.features
        self.work, self.seed, self.context = work, seed, config.context_size
        sides = sides_of(work)
        self.stitch, self.tokenizer = sides.stitch, tokenizer_of(work.inputs["tokenizer"])
        sae = read_sae(work.inputs["source_sae"] / "sae")[0].to(sides.stitch.up.weight.device)
        self.source = Side(sides.source, sides.source_hook_point, sae, study.config.precision)
        moved = transfer_sae(sae, *sides.stitch)
        self.target = Side(sides.target, sides.target_hook_point, moved, study.config.precision)
        self.blocks = stitch_blocks(work, "validation", self.config.tokens, self.context, seed)
        self.paired: Paired = activation_correlation(self.source, self.target, self.blocks)
        self.judged = self.paired.source_firings >= RARE_FIRINGS
        self.columns: dict[str, Any] = {
            "feature": np.arange(sae.d_sae, dtype=np.int32),
            "judged": self.judged,
            "activation_r": self.paired.r,
            **{key: value for key, value in self.paired._asdict().items() if key not in ("r", "tokens")},
        }
        self.reasons: dict[str, str] = {}

    def told(self) -> KeptSummary:
        """All parts, each of which may have a reason instead; writes the table."""
        parts: dict[str, Any] = {"attribution": self._attribution, "split": self._split}
        if self.config.functional:
            parts |= {"entropy": self._entropy, "deactivation": self._deactivation}
        found: dict[str, Any] = dict.fromkeys(("attribution", "split", "entropy", "deactivation"))
        for done, (part, ask) in enumerate(parts.items(), 1):
            try:
                found[part] = ask()
            except ValueError as error:  # a model or a text that this part knows no way with
                self.reasons[part] = str(error)
            self.work.progress(done, len(parts))
        table = pa.table(self.columns).replace_schema_metadata({"tokens": str(self.paired.tokens)})
        pq.write_table(table, self.work.folder / KEPT_TABLE, compression="zstd")
        return KeptSummary(
            d_sae=len(self.judged),
            judged=int(self.judged.sum()),
            tokens=self.paired.tokens,
            activation=spread(self.paired.r[self.judged]),
            reasons=self.reasons,
            **found,
        )

    def _attribution(self) -> AttributionSummary:
        from heredity.stitch.attribution import attribution_correlation, random_baseline

        found = attribution_correlation(self.source, self.target, self.blocks)
        up, down = self.stitch
        k = max(1, round(float(found.source_firings.sum()) / found.tokens))
        by_chance = random_baseline(self.source, self.target[:2], up, down, self.blocks, k, self.seed)
        self.columns["attribution_r"] = found.r
        own, other = found.r[self.judged], by_chance.r[by_chance.source_firings >= RARE_FIRINGS]
        own, told = own[np.isfinite(own)], spread(other)
        cut = told.quantiles[-1]
        return AttributionSummary(
            tokens=found.tokens,
            trained=spread(own),
            random=told,
            k=k,
            cut=cut,
            above=float((own > cut).mean()) if len(own) and cut is not None else None,
            negative=float((own < 0).mean()) if len(own) else None,
        )

    def _split(self) -> SplitSummary:
        from heredity.stitch.word_swaps import split_features

        corpus = prose_corpus(self.work.group("corpus"), self.config.corpus)
        texts, unchanged = self._versions(self.work.inputs[f"corpus:{corpus}"])
        found = split_features(self._fired(texts))
        self.columns |= {name: value for name, value in found._asdict().items() if name != "by_chance"}
        self.columns["share_by_chance"] = found.by_chance
        classes = {"structural": found.structural & self.judged, "semantic": found.semantic & self.judged}
        values = {
            "attribution": self.columns.get("attribution_r", np.full(len(self.judged), np.nan)),
            "activation": self.paired.r,
            "density": self.paired.source_firings / self.paired.tokens,
        }
        return SplitSummary(
            corpus=corpus,
            prompts=len(texts),
            versions=len(texts[0]),
            unchanged=unchanged,
            neither=int((self.judged & (found.prompts == 0)).sum()),
            **{name: self._class(own, values) for name, own in classes.items()},
            tests={
                name: rank_test(each[classes["structural"]], each[classes["semantic"]], self.seed)
                for name, each in values.items()
            },
        )

    def _versions(self, corpus: Artifact) -> tuple[list[list[str]], int]:
        """Held-out texts with their rewrites, and how many had no word to swap. ValueError when none is left."""
        from heredity.stitch.probe_datasets import CHARACTERS
        from heredity.stitch.word_swaps import read_lexicon, rewrites, snippets

        train, held_out = (
            [text[:CHARACTERS] for text in islice(read_corpus(corpus.folder, split), _READ)]
            for split in ("train", "validation")
        )
        lexicon = read_lexicon(train)
        chosen = snippets(held_out, self.config.prompts, self.seed)
        made = [
            [text, *rewrites(text, lexicon, self.config.rewrites, self.seed + number)]
            for number, text in enumerate(chosen)
        ]
        kept = [versions for versions in made if len(set(versions)) > 1]
        if not kept:
            raise ValueError(f"none of {len(made)} held-out texts has a word that could be swapped; give more prose")
        return kept, len(made) - len(kept)

    def _fired(self, texts: list[list[str]]) -> np.ndarray:
        """Whether each feature fires in the source on any token: bool [prompts, versions, d_sae]."""
        from heredity.stitch.probe import Dictionary, means, text_vectors

        flat, source = [text for versions in texts for text in versions], self.source
        read = text_vectors(source.model, self.tokenizer, source.hook_point, flat, self.context, source.precision)
        (found,) = means(read, len(flat), [Dictionary(source.sae)]).features
        return found.astype(bool).toarray().reshape(len(texts), len(texts[0]), -1)

    def _class(self, own: np.ndarray, values: Mapping[str, np.ndarray]) -> ClassSummary:
        return ClassSummary(
            features=int(own.sum()),
            silent=int((own & (self.paired.target_firings == 0)).sum()),
            density=median(values["density"][own]),
            attribution=spread(values["attribution"][own]),
            activation=spread(values["activation"][own]),
        )

    def _entropy(self) -> EntropySummary:
        from heredity.stitch.functional import null_share

        before, after = (null_share(side.model, side.hook_point, side.sae.W_dec) for side in (self.source, self.target))
        push, later = before.norm * self.paired.source_peak, after.norm * self.paired.target_peak
        self.columns |= {"null_share": before.share, "carried_null_share": after.share}
        return EntropySummary(
            source=quantiles(before.share[self.judged]),
            target=quantiles(after.share[self.judged]),
            by_chance=(before.by_chance, after.by_chance),
            dimensions=(before.dimensions, after.dimensions),
            rank=rank_correlation(before.share[self.judged], after.share[self.judged]),
            features=tuple(
                EntropyFeature(
                    feature=i, share=before.share[i], carried=after.share[i], push=push[i], carried_push=later[i]
                )
                for i in self._best(before.share * push)
            ),
        )

    def _deactivation(self) -> DeactivationSummary:
        from heredity.stitch.functional import head_scores, strongest_head

        first = "bos" if self.tokenizer.bos_token_id is not None else "eos"
        bos = int(getattr(self.tokenizer, f"{first}_token_id"))
        sides = self.source, self.target
        found = [head_scores(side.model, side.hook_point, side.sae.W_dec, bos) for side in sides]
        best = [each.scores.max((1, 2)) for each in found]
        self.columns |= {"head_score": best[0], "carried_head_score": best[1]}
        blocks = self.blocks[: max(1, _ABLATED // self.context)].copy()
        blocks[:, 0] = bos
        features = [
            DeactivationFeature(
                feature=i,
                source=HeadSummary(**strongest_head(*self.source[:3], found[0], i, blocks)._asdict()),
                target=HeadSummary(**strongest_head(*self.target[:3], found[1], i, blocks)._asdict()),
            )
            for i in self._best(best[0])
        ]
        rank = rank_correlation(best[0][self.judged], best[1][self.judged])
        return DeactivationSummary(first=first, rank=rank, features=tuple(features))

    def _best(self, values: np.ndarray) -> list[int]:
        """The judged features of the largest values, largest first."""
        order = np.argsort(-np.where(self.judged & np.isfinite(values), values, -np.inf), kind="stable")
        return [int(i) for i in order[: self.config.functional] if self.judged[i] and np.isfinite(values[i])]


def prose_corpus(corpora: Mapping[str, Artifact], named: str | None) -> str:
    """The corpus that texts are taken from: the named one, else the first of which most documents are no code.

    Raises ValueError when all are code.
    """
    from heredity.stitch.probe_datasets import LOOKED_AT, mostly_code

    for name, corpus in corpora.items():
        if named == name or not mostly_code(list(islice(read_corpus(corpus.folder, "train"), LOOKED_AT))):
            return name
    raise ValueError(f"of the common corpora, {', '.join(corpora)}, none is prose, whose words could be swapped")


def rank_test(structural: np.ndarray, semantic: np.ndarray, seed: int) -> RankTestSummary:
    """Whether values of the first are above those of the second; nan values are left out."""
    from heredity.explain.compare import compare

    found = compare(structural, semantic, seed=seed)
    return RankTestSummary(p=found.p, effect=found.effect, interval=(found.low, found.high))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman correlation of two rows, of the places where both are finite; None where either does not vary."""
    from scipy.stats import rankdata

    known = np.isfinite(a) & np.isfinite(b)
    if any(len(np.unique(values[known])) < 2 for values in (a, b)):
        return None
    return float(np.corrcoef(rankdata(a[known]), rankdata(b[known]))[0, 1])
