"""All that is known of any feature of a run, one after another: what they share is read once and kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.analyses.asked import asked, said_of
from heredity.analyses.explain import asking_of, explain_settings
from heredity.analyses.explain_on_demand import FOLDER, LEDGER
from heredity.analyses.features import fired_on, logits_of, member_of, predicted
from heredity.analyses.notes import notes_on
from heredity.analyses.query import check_followed, matches_of, near_of, rows_of_stage, sample_of, verdicts_of
from heredity.analyses.reading import load, on_device
from heredity.analyses.sae import sae_need
from heredity.analyses.sample import Sample, sample_settings
from heredity.engine.store import ArtifactError
from heredity.explain.protocol import LEVELS, Failure
from heredity.study import StudyError

if TYPE_CHECKING:
    from heredity.explain.excerpts import Drawn
    from heredity.explain.propagate import Asking
    from heredity.explain.protocol import Excerpt, Levels
    from heredity.features.cards import Card, Columns, LogitTokens, Places
    from heredity.features.collect import Reader
    from heredity.features.families import Member
    from heredity.results import Run

_AUDITED = 8  # excerpts that predictions are shown on, from the strongest to the weakest


def _strongest(excerpts: Sequence[Excerpt]) -> list[int]:
    """Places of the excerpts that predictions are shown on."""
    ranks = sorted(range(len(excerpts)), key=lambda place: -excerpts[place].values.max(initial=0.0))
    return [ranks[place * len(ranks) // _AUDITED] for place in range(min(_AUDITED, len(ranks)))]


class Inspector:
    """The features of a run at one site, in the SAEs of one instrument.

    Holds the sample, the matches, and the activations of every model by feature: about 8 bytes for every firing.
    """

    def __init__(
        self,
        run: Run,
        instrument: str | None = None,
        site: str | None = None,
        models: dict[str, Any] | None = None,
    ) -> None:
        """By the study's first instrument and site unless others are named. models: those that are open, by name, which
        several inspectors share.

        Raises StudyError for a place that the study does not have. What is not done is missed when it is asked for.
        """
        self.run, self.place = run, run.item(instrument, site) if run.study.instruments else {}
        self.models: dict[str, Any] = {} if models is None else models
        self._readers: dict[str, Reader] = {}

    @cached_property
    def sample(self) -> Sample:
        """The sample with all activations and matches. Raises ArtifactError for what is not done, ValueError for a
        study of stitches alone."""
        return sample_of(self.run, self.run.study.followed, matched=True, place=self.place)

    @cached_property
    def asking(self) -> Asking:
        """Questions to the offline judge, which also holds the activations by feature."""
        return asking_of(self.sample, explain_settings(self.run.study))

    @cached_property
    def explain(self) -> Callable[[str, int], str | Failure | None]:
        """`Asking.explain`: what is labeled on the spot is audited next, by the same rule."""
        return lru_cache(maxsize=64)(self.asking.explain)

    @cached_property
    def label(self) -> Callable[[str, int], dict[str, Any]]:
        """The explanation of a feature. Its family's members show it too, and making one takes half of an answer."""
        return lru_cache(maxsize=1024)(self._explanation)

    @property
    def columns(self) -> Mapping[str, Columns]:
        """Firings of every feature, by model."""
        return self.asking.columns

    def check(self, model: str, feature: int) -> None:
        """Raises ValueError for a model of which no features are followed, and a number beyond its SAE."""
        check_followed(self.run.study, model, f"{model}/{feature}")
        size = self.sample.acts[model].d_sae
        if not 0 <= feature < size:
            raise ValueError(f"{model}/{feature}: its SAE has {size:,} features, counted from 0")

    def show(self, model: str, feature: int) -> dict[str, Any]:
        """All that is known of one feature, as a JSON object: what `shown` has, and what `predicts` has.

        Raises ValueError for a stage up to acts and match that is missing, an unknown model, and a number beyond its
        SAE.
        """
        return self.shown(model, feature) | self.predicts(model, feature)

    def shown(self, model: str, feature: int) -> dict[str, Any]:
        """What is known of a feature without its model.

        - `positions`, `context_size`: tokens of the sample, and of a block.
        - `class`: a row of table `feature_classes`; null where that stage is not done.
        - `explanation`: a row of table `explanations` without its rule; `on_the_spot`: made by statistics just now.
        - `histogram`: firings in equal bins of activation from 0 to `max`.
        - `tokens`: those it fires on, the largest `share` of its activation first; `fired`: share of their occurrences;
          `llr`: log of `share` over the token's share of the sample.
        - `notes`: what people wrote of it.
        - `audit`: text that the explanation was scored on, `corpus`, `tokens`, `position`, with the activations
          (`values`) and those that it predicts there (`predicted`), on the same scale; the strongest first. Empty for a
          feature too rare to be scored, without an explanation, or with one of a language model, whose predictions are
          in its ledger.
        - `said`: what language models said of it, as `said`.
        - `matches`: best match along every edge of its model. `verdicts`: what became of it along each by evidence, and
          why, as far as that stage is done; `transmission` and `strength` over their scale. `family`: itself first.
        - `top`: strongest firings, each with its block (`corpus`, `tokens`), `position` in it, `values` (activations)
          and `family` (those of the other members, by model). `levels`: examples by interval of activation, the
          strongest first. `drawn`: firings at random. `silent`: blocks without a firing.

        Raises as `show` does.
        """
        return self.fired(model, feature) | self.explained(model, feature)

    def explained(self, model: str, feature: int) -> dict[str, Any]:
        """`explanation` and `audit` of `shown`: half of its time where the explanation is made on the spot."""
        self.check(model, feature)
        label = self.label(model, feature)
        return {"explanation": label, "audit": self._audit(model, feature, label)}

    def fired(self, model: str, feature: int) -> dict[str, Any]:
        """What `shown` has but for what is explained."""
        from heredity.features.cards import Sizes
        from heredity.features.families import family

        self.check(model, feature)
        sample, study = self.sample, self.run.study
        card = self.card(model, feature)
        members = family(model, feature, sample.edges, sample.matches)
        tokens = fired_on(sample, card)[: Sizes().tokens]
        for row in tokens:
            row["llr"] = math.log(row["share"] * row["fired"] * sample.acts[model].counted / row["firings"])
        return {
            "study": study.name,
            **self.place,
            "model": model,
            "feature": feature,
            "positions": sample.ids.size,
            "context_size": sample.ids.shape[1],
            "class": self._class(model, feature),
            "said": self.said(model, feature),
            "notes": notes_on(self.run, self.place, model, feature),
            "firings": card.firings,
            "density": card.density,
            "max": card.highest,
            "histogram": card.histogram.tolist(),
            "tokens": tokens,
            "matches": matches_of(sample, model, feature),
            "verdicts": verdicts_of(self.run, self.place, model, feature),
            "family": [self.member(member) for member in members],
            **self._examples(card, members),
        }

    def family(self, model: str, feature: int, explained: bool = True) -> dict[str, Any]:
        """A feature in every model that the lineage connects it with.

        - `members`: as in `shown`, itself first, each with its `explanation`, as in `shown`, unless `explained` is off.
        - `pairs`: `model_a`, `feature_a`, `model_b`, `feature_b` and `r` (Pearson, zeros included; null for a constant
          one) of every two members, in the order of the models.
        - `near`: by member and edge of its model its best matches there, the best first: `model`, `feature`, `edge`,
          `other` (the model looked into) and `matches`, each a `feature` and its `r`.

        Raises as `show` does.
        """
        from heredity.features.families import family

        self.check(model, feature)
        members = family(model, feature, self.sample.edges, self.sample.matches)
        told = [
            self.member(one) | ({"explanation": self.label(one.model, one.feature)} if explained else {})
            for one in members
        ]
        ordered = sorted(members, key=lambda one: self.sample.models.index(one.model))
        near = [row for one in ordered for row in near_of(self.sample, one.model, one.feature)]
        return {"members": told, "pairs": self._pairs(ordered), "near": near}

    def _audit(self, model: str, feature: int, label: Mapping[str, Any]) -> list[dict[str, Any]]:
        drawn = self.asking.drawn(model, feature)
        if drawn is None or not label["description"] or label["by"] != self.asking.judge.name:
            return []
        made_for = (label["origin_model"], label["origin_feature"]) if label["carried"] else (model, feature)
        explanation = self.explain(*made_for)
        if not isinstance(explanation, str):
            return []
        shown = _strongest(drawn.scoring)
        excerpts = [drawn.scoring[place] for place in shown]
        levels = self.asking.judge.simulate(f"{model}/{feature}", explanation, excerpts)
        return self._predicted(drawn, excerpts, levels)

    def said(self, model: str, feature: int) -> list[dict[str, Any]]:
        """What language models said of a feature (`heredity explain`): by folder beside the run, `by` and `description`
        with its scores, what the requests cost in USD (`cost`), and why there is none (`failure`)."""
        return said_of(self.run, self.place, model, feature)

    def asked(self, model: str, feature: int) -> list[dict[str, Any]]:
        """What language models were asked about a feature, in the order of `said`.

        - `requests`: with `question`, `model`, `provider`, `prompt`, `answer` as it came, `failure` and `detail` where
          it could not be read, `tokens_in`, `tokens_out`, `cost` in USD, `seconds`, `attempts` and `time`; of one
          without an answer no `prompt` is known. `others`: further ones about the feature, of a description that was
          given up or for other SAEs.
        - `audit`: as in `shown`, of what the model predicts on the text that its explanation was scored on.

        Raises as `show` does, and LedgerError for a ledger that cannot be read.
        """
        self.check(model, feature)
        drawn, found = self.asking.drawn(model, feature), []
        for said in self.said(model, feature):
            ledger, audit = self.run.folder / FOLDER / said["folder"] / LEDGER, []
            requests, others, levels = asked(self.asking, ledger, said, model, feature)
            if drawn is not None and not isinstance(levels, Failure):
                shown = _strongest(drawn.scoring)
                audit = self._predicted(drawn, [drawn.scoring[at] for at in shown], [levels[at] for at in shown])
            found.append({"requests": [one._asdict() for one in requests], "others": others, "audit": audit})
        return found

    def _predicted(self, drawn: Drawn, excerpts: Sequence[Excerpt], levels: Levels) -> list[dict[str, Any]]:
        """Rows of an audit: excerpts with the levels that were predicted for them."""
        rows = []
        for excerpt, level in [] if isinstance(levels, Failure) else zip(excerpts, levels, strict=True):
            if not isinstance(level, Failure):
                corpus = self.sample.corpora[int(self.sample.origin[excerpt.block])]
                predicted = [round(float(one) / (LEVELS - 1) * drawn.highest, 4) for one in level]
                values = [round(float(value), 4) for value in excerpt.values]
                row = {"corpus": corpus, "tokens": [*excerpt.tokens], "position": excerpt.center}
                rows.append({**row, "values": values, "predicted": predicted})
        return rows

    def card(self, model: str, feature: int) -> Card:
        """Where a feature fires, and on all of which tokens."""
        from heredity.features.cards import Sizes, cards

        sample = self.sample
        sizes = Sizes(tokens=len(sample.vocabulary))  # all tokens, for the total
        seed, own = sample_settings(self.run.study).seed, np.array([feature], np.int64)
        (card,) = cards(sample.acts[model], sample.ids, own, sizes, seed, columns=self.columns[model])
        return card

    def member(self, member: Member) -> dict[str, Any]:
        """A member of a family with its density and highest activation."""
        _, values = self.columns[member.model].of(member.feature)
        return member_of(member, values, self.sample.acts[member.model].counted)

    def predicts(self, model: str, feature: int) -> dict[str, Any]:
        """`promoted`, `suppressed`: `token` and `weight` in the logits; `no_logits`: why these are empty.

        Raises as `show` does.
        """
        self.check(model, feature)
        logits = self.logits(model, np.array([feature], np.int64))
        one = logits if isinstance(logits, str) else logits._make(part[0] for part in logits)
        return predicted(self.sample, one)

    def logits(self, model: str, features: np.ndarray) -> LogitTokens | str:
        """What features of a model predict, int [n], or why that is not known."""
        try:
            return logits_of(self.reader(model), features)
        except (ArtifactError, StudyError) as error:  # not done; or the model has gone since the run
            return str(error)

    def reader(self, model: str) -> Reader:
        """A model and its SAE, opened once. Raises ArtifactError for what is not done, StudyError for a model that has
        gone since the run."""
        from heredity.features.collect import Reader
        from heredity.sae.formats import read_sae

        if model not in self._readers:
            item = self.place
            sae = self.run.artifact(sae_need(self.run.study, model, item["instrument"], item["site"]))
            if model not in self.models:
                self.models[model] = on_device(load(self.run.artifact(("model", {"model": model}))))
            target = next(self.models[model].parameters()).device
            saes, precision = [read_sae(sae / "sae")[0].to(target)], self.run.study.config.precision
            self._readers[model] = Reader(self.models[model], item["site"], saes, precision)
        return self._readers[model]

    def _pairs(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        """r of every two members, on the positions that are samples in every model."""
        _, kept = self.sample.common
        dense = np.zeros((len(members), self.sample.ids.size))
        for values, member in zip(dense, members, strict=True):
            rows, found = self.columns[member.model].of(member.feature)
            values[rows] = found
        if kept is not None:
            dense = dense[:, kept]
        dense -= dense.mean(axis=1, keepdims=True)
        norms = np.sqrt((dense * dense).sum(axis=1))
        pairs = []
        for (a, one), (b, other) in itertools.combinations(enumerate(members), 2):
            norm = float(norms[a] * norms[b])
            r = float(np.clip(dense[a] @ dense[b] / norm, -1, 1)) if norm > 0 else None
            ends = {"model_a": one.model, "feature_a": one.feature, "model_b": other.model, "feature_b": other.feature}
            pairs.append(ends | {"r": r})
        return pairs

    def _examples(self, card: Card, members: Sequence[Member]) -> dict[str, Any]:
        """The examples of a card. members: its feature's family, itself first."""
        from heredity.features.cards import contexts

        sample = self.sample
        known = {member.model: self.columns[member.model].of(member.feature) for member in members}
        top, levels, count = [], [], len(card.levels)
        for context in contexts(card.top.rows, known, sample.ids.shape[1]):
            others = dict(context.values)
            values = others.pop(members[0].model)
            top.append(sample.block(context.block) | {"position": context.position, "values": values, "family": others})
        for place, places in enumerate(card.levels):
            low, high = (card.highest * (count - step - place) / count for step in (1, 0))
            levels.append({"low": low, "high": high, "examples": self._blocks(places)})
        silent = [sample.block(block) for block in card.silent.tolist()]
        return {"top": top, "levels": levels, "drawn": self._blocks(card.drawn), "silent": silent}

    def _blocks(self, places: Places) -> list[dict[str, Any]]:
        from heredity.features.cards import rounded

        rows = []
        for row, values in zip(places.rows.tolist(), rounded(places), strict=True):
            block, position = divmod(row, self.sample.ids.shape[1])
            rows.append(self.sample.block(block) | {"position": position, "values": values})
        return rows

    def _class(self, model: str, feature: int) -> dict[str, Any] | None:
        rows = rows_of_stage(self.run, "classes", self.place, "feature_classes", feature=feature, model=model)
        silent = {"class": "silent", "single_token": False, "domain": None, "domain_share": None, "top_token": None}
        return None if rows is None else {name: rows[0][name] for name in silent} if rows else silent

    def _explanation(self, model: str, feature: int) -> dict[str, Any]:
        from heredity.explain.propagate import hand_down, label_rows

        rows = known = rows_of_stage(self.run, "explain", self.place, "explanations", feature=feature, model=model)
        if not rows:
            asking, drop = self.asking, self.run.study.config.explain.drop
            labels = hand_down({model: [feature]}, (), {}, self.explain, asking.score, drop)
            rows = label_rows(labels, asking.judge.name)
        left_out = ("instrument", "site", "model", "feature", "rule")
        row = {name: value for name, value in rows[0].items() if name not in left_out}
        undefined = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
        return row | undefined | {"on_the_spot": not known}
