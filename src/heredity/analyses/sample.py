"""Feature activations of every model on one token sample from all corpora, in equal parts: what features are shown on,
and what cases, classes and explanations read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.analysis import Analysis, Cost, Item, Needs, Results, seed_of
from heredity.analyses.match import read_matches, threshold_of
from heredity.analyses.reading import reader_of, sampler_of, tokenizer_of
from heredity.analyses.sae import encode_flops, read_passes, sae_items, sae_need
from heredity.analyses.text import tokenizer_need, tokens_needs
from heredity.engine.stage import Work
from heredity.engine.store import Artifact
from heredity.study import Edge, Precision, Study
from heredity.text.letters import letters

if TYPE_CHECKING:
    from heredity.analyses.plan import Shapes
    from heredity.features.acts import FeatureActs
    from heredity.features.correlate import Matches

MIN_FIRINGS = 20  # a feature seen less often on the sample is not shown as an example of anything


class ActsSettings(NamedTuple):
    hook_point: str
    precision: Precision
    tokens: int
    context_size: int
    seed: int


def case_settings(study: Study) -> SampleSettings | None:
    """The sample of the case studies where they have one of their own."""
    config, sample = study.config, sample_settings(study)
    tokens, corpora = config.report.case_tokens or sample.tokens, case_corpora(study)
    shared = tokens == sample.tokens and len(corpora) == len(config.corpus)
    return None if shared else sample._replace(tokens=tokens)


def case_corpora(study: Study) -> tuple[str, ...]:
    """Corpora of that sample, in the order of [corpus]."""
    named = study.config.report.case_corpora
    return tuple(corpus for corpus in study.config.corpus if corpus in named or not named)


def _items(study: Study) -> list[Item]:
    items = list(sae_items(study))
    own = study.config.case and case_settings(study) is not None
    return items + ([item | {"use": "cases"} for item in items] if own else [])


def _settings(study: Study, item: Item) -> ActsSettings:
    config, sample = study.config, (case_settings(study) if "use" in item else None) or sample_settings(study)
    return ActsSettings(item["site"], config.precision, sample.tokens, sample.context_size, sample.seed)


def _needs(study: Study, item: Item) -> Needs:
    sae = sae_need(study, item["model"], item["instrument"], item["site"])
    corpora = case_corpora(study) if "use" in item else study.config.corpus
    return {"model": ("model", {"model": item["model"]}), "sae": sae, "tokens": tokens_needs(corpora)}


def _run(work: Work, settings: ActsSettings) -> Results:
    from heredity.features.collect import collected

    sampler = sampler_of(work.inputs["tokens"], "train", settings.context_size, settings.seed)
    opened = reader_of(work.inputs["model"], [work.inputs["sae"]], settings.hook_point, settings.precision)
    (acts,) = collected(work.shards.job(opened), sampler, settings.tokens, work.progress)
    acts.save(work.folder / "acts.safetensors")
    return {}


def acts_of(artifact: Artifact) -> FeatureActs:
    """The feature activations of an acts artifact."""
    from heredity.features.acts import FeatureActs

    return FeatureActs.load(artifact / "acts.safetensors")


def _cost(study: Study, item: Item, shapes: Shapes) -> Cost:
    report = study.config.report
    tokens = (report.case_tokens if "use" in item else None) or report.tokens
    read = item["model"], item["site"]
    at = read[0], shapes, read[1]
    flops, passes = tokens * encode_flops(study, *at), read_passes(study, *at[:2], tokens, read[1])
    return Cost(tokens, flops, shapes.sae_gib(*read, tokens), passes=passes)


ANALYSIS = Analysis(
    kind="acts",
    version=1,
    title="Feature activations",
    items=_items,
    settings=_settings,
    needs=_needs,
    run=_run,
    cost=_cost,
)


class SampleSettings(NamedTuple):
    """What a sample is taken by."""

    tokens: int
    context_size: int
    seed: int
    models: tuple[str, ...]  # whose features are followed, parents before children
    edges: tuple[Edge, ...]


def sample_settings(study: Study) -> SampleSettings:
    """The study's token sample; `seed` is also that of the `acts` stages."""
    tokens, context = study.config.report.tokens, study.config.sae.context_size
    return SampleSettings(tokens, context, seed_of(study, "sample"), study.followed, study.descent)


def sample_needs(study: Study, item: Item) -> Needs:
    """Inputs of a stage that reads a `Sample`; item: its instrument and site."""
    return {
        "tokenizer": tokenizer_need(study),
        "acts": {name: ("acts", {**item, "model": name}) for name in study.followed},
        "match": match_needs(study, item),
        "tokens": tokens_needs(study.config.corpus),
    }


def match_needs(study: Study, item: Item) -> dict[str, tuple[str, Item]]:
    """Matches along every edge of descent, by its name; item: instrument and site."""
    return {edge.name: ("match", {**item, "edge": edge.name}) for edge in study.descent}


def instrument_items(study: Study) -> list[Item]:
    """One item per instrument and site."""
    return [{"instrument": name, "site": site} for name in study.instruments for site in study.sites]


class SampleText(NamedTuple):
    """The text of a sample."""

    ids: np.ndarray  # int64 [blocks, context]
    origin: np.ndarray  # int64 [blocks], the corpus of each
    corpora: tuple[str, ...]
    tokenizer: Any
    vocabulary: list[str]  # text of each token


def _text_of(
    tokens: tuple[tuple[str, Artifact], ...], tokenizer: Artifact, size: int, context_size: int, seed: int
) -> SampleText:
    """tokens: packed, by corpus. size: of the sample, in tokens."""
    from heredity.text.tokens import token_texts

    sampler = sampler_of(dict(tokens), "train", context_size, seed)
    count = min(-(-size // context_size), sampler.blocks_per_pass)
    ids, origin = np.ma.getdata(sampler.take(0, count)), sampler.origin(0, count)[0]
    opened = tokenizer_of(tokenizer)
    return SampleText(ids, origin, tuple(sampler.names), opened, token_texts(opened))


shared_text = lru_cache(maxsize=2)(_text_of)
"""The same for several places of a run, read once: artifacts are never written again, nor are its arrays."""


class Sample:
    """The token sample, feature activations of the models on it, and the matches between the models."""

    def __init__(
        self, inputs: Mapping[str, Any], settings: SampleSettings, text_of: Callable[..., SampleText] = _text_of
    ) -> None:
        """inputs: artifacts by role, as `sample_needs` names them; of models and edges there may be some only.
        text_of: reads the text."""
        wanted = settings.tokens, settings.context_size, settings.seed
        text = text_of(tuple(inputs["tokens"].items()), inputs["tokenizer"], *wanted)
        self.ids, self.origin, self.corpora, self.tokenizer, self.vocabulary = text
        self._pieces: dict[int, list[str]] = {}
        self.models = settings.models
        self.acts = {name: acts_of(artifact) for name, artifact in inputs["acts"].items()}
        found = {edge: inputs["match"][edge.name] for edge in settings.edges if edge.name in inputs["match"]}
        self.edges = list(found)
        self.matches: dict[tuple[str, str], Matches] = {edge: read_matches(one) for edge, one in found.items()}
        self.threshold: dict[tuple[str, str], float] = {edge: threshold_of(one) for edge, one in found.items()}

    @cached_property
    def firings(self) -> dict[str, np.ndarray]:
        """Number of firings of each feature, int64 [d_sae] by model."""
        return {name: np.bincount(acts.indices, minlength=acts.d_sae) for name, acts in self.acts.items()}

    @property
    def above(self) -> dict[tuple[str, str], Matches]:
        """The matches that count: those above each edge's threshold."""
        return {edge: matches.above(self.threshold[edge]) for edge, matches in self.matches.items()}

    @cached_property
    def common(self) -> tuple[dict[str, FeatureActs], np.ndarray | None]:
        """Activations at the positions that are samples in every model, by model, and which of the positions these are,
        bool [blocks · context]; None where all are."""
        from heredity.features.collect import together

        acts, kept = together(*self.acts.values())
        return dict(zip(self.acts, acts, strict=True)), kept

    def text(self, token: int) -> str:
        """A token as text; a model may have rows for more than the tokenizer knows."""
        return self.vocabulary[token] if token < len(self.vocabulary) else f"#{token}"

    def block(self, number: int) -> dict[str, Any]:
        """A block of the sample as text."""
        return {"corpus": self.corpora[int(self.origin[number])], "tokens": self.pieces(number)}

    def pieces(self, number: int) -> list[str]:
        """Texts of the tokens of a block, which joined are its text; kept, 8 bytes per token, and not to be changed."""
        if number not in self._pieces:
            self._pieces[number] = letters([self.text(token) for token in self.ids[number].tolist()])
        return self._pieces[number]
