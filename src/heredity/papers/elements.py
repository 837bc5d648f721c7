"""The 97 elements of both papers: what each is, where it is here, what differs and why, and where its result stands.

docs/papers.md is made from this list, and a test resolves every reference. A reference has one of these forms:

    heredity.module:name          a function, a class, a constant, or an attribute of a class
    table NAME, table NAME.column a declared table of a run or of `heredity reproduce`
    key a.b.NAME.c                a key of the study file; NAME is a name that the study gives
    command NAME                  a command
    page FILE                     a part of the report page, in web/src

Results name what `heredity reproduce` prints (`reproduce: PART` of its figures, or `reproduce: TABLE`), a picture that
it draws, by what stands in the title (`picture (Figure 2)`), a table of the run, or a document. That recorded runs are
smaller than the papers' is no deviation here: the tables `scale` and `deviations` say by how much.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["there", "there, with a deviation", "left out, with a reason"]


class Element(NamedTuple):
    """One element of a paper."""

    number: int
    paper: Literal["T", "S"]  # Horn & Elliott (tracking) or Chen et al. (stitching), reviews of it included
    place: str  # section, appendix, figure, table or footnote; cards, code, hub: published beside it; review: of it
    element: str  # in our own words, with the paper's values
    here: tuple[str, ...]  # references; empty for what is left out
    deviation: str  # what differs and why; of what is left out, the reason
    result: str

    @property
    def state(self) -> State:
        """Whether all of it is there."""
        if not self.here:
            return "left out, with a reason"
        return "there, with a deviation" if self.deviation else "there"


PARTS: dict[str, tuple[Element, ...]] = {
    "Text, models, training": (
        Element(1, "T", "3.1, fn 3",
            "Text: the base model reads BabyLM 100M and a tenth of The Stack's Python, as many tokens of each, 335.6M "
            "by its tokenizer; the fine-tunes read The Stack's Lua, and TinyStories.",
            ("heredity.text.sources:PRESETS", "key corpus.NAME.source", "key corpus.NAME.share",
             "key corpus.NAME.max_bytes", "table corpora.sha256"),
            "Python is cut at a number of bytes in seeded random order, not sampled by a tenth.",
            "reproduce: scale; table `corpora` names every text by its hash."),
        Element(2, "T", "3; cards",
            "A Mistral-like decoder of one block: width 512, SiLU-gated MLP of 1,024, 16 query and 8 key heads, 35.1M "
            "weights with Mistral's vocabulary of 32,000 (the 125M of a review in circulation are wrong).",
            ("heredity.lm.load:mistral_config", "heredity.study:ArchitectureConfig", "key tokenizer.vocab_size",
             "key tokenizer.load", "table models.parameters"),
            "The studies train a vocabulary on their own text, since Mistral's is on the hub alone; `tokenizer.load` "
            "takes it.",
            "reproduce: scale"),
        Element(3, "T", "3.1; cards, code",
            "Training by next-token loss: the base at 6e-4 with a cosine, weight decay 0.1, 64 sequences of 256 tokens "
            "and 3 epochs (4 in the repository); fine-tunes at 2e-5 with 500 steps of warm-up, decay 0.01 and 1 epoch.",
            ("heredity.lm.train:train_model", "key model.NAME.train.lr", "key model.NAME.train.epochs",
             "key model.NAME.lr", "key model.NAME.warmup_steps", "key model.NAME.weight_decay"),
            "", "reproduce: deviations; table `models`."),
        Element(4, "T", "3.1, Fig 1",
            "Figure 1: four models (base, two fine-tunes, their merge) with an SAE for each.",
            ("heredity.study:Study", "key model.NAME.parent", "key model.NAME.merge.parents",
             "page pages/Overview.svelte"),
            "", "Drawn on the page of `heredity report`."),
        Element(5, "T", "fn 2; hub",
            "All four models are published, three of them as GGUF copies too.",
            ("key model.NAME.load", "key tokenizer.load", "heredity.lm.load:load_model"),
            "GGUF files are not read, only safetensors.", "None on record: the recorded runs are made offline."),
        Element(6, "T", "cards; review",
            "Held-out loss of 3.10, 2.45 and 2.04 and accuracy of .419, .494 and .520 of base, Lua and TinyStories, "
            "each on text of its own; the review asks that the base read both texts and each fine-tune specialize.",
            ("heredity.lm.evaluate:evaluate", "table accuracy.ce_loss", "table accuracy.accuracy"),
            "", "reproduce: models"),
        Element(7, "T", "3",
            "Ten hours a model and eight an SAE on one A100 of 40 GB.",
            ("heredity.analyses.plan:plan", "command check", "heredity.results:Run.seconds"),
            "Recorded runs are of two CPU cores at the sizes in `scale`; the full size has been estimated by `heredity "
            "check`, not run.",
            "Head of the text that `heredity reproduce -o` writes."),
    ),
    "SAEs": (
        Element(8, "T", "3.2",
            "Each model has an SAE of its own, trained alone.",
            ("key sae.instruments", "table saes.instrument", "heredity.sae.train:train"),
            "",
            "reproduce: SAEs, where independent SAEs come first; headline findings of a study are of the first it "
            "names."),
        Element(9, "T", "3.2, App B",
            "SAEs read blocks.0.mlp.hook_post behind the gate, 1,024 wide, with sixteen times as many features, "
            "16,384.",
            ("key hook_point", "key sae.expansion", "heredity.lm.hooks:resolve", "table saes.d_in", "table saes.d_sae"),
            "", "reproduce: scale"),
        Element(10, "T", "3.2, fn 5, App B",
            "15M vectors in blocks of 24 tokens, uniform over the union of all text in the model's ancestry, in "
            "batches of 128 shuffled blocks.",
            ("heredity.study:Study.trace", "heredity.lm.activations:ActivationStore", "key sae.tokens",
             "key sae.context_size", "key sae.batch_blocks", "key sae.mix"),
            "", "reproduce: scale"),
        Element(11, "T", "App B",
            "Adam with rates of 0.9 and 0.9999 and a constant learning rate of 1e-4.",
            ("heredity.kernels.step:BETAS", "key sae.lr", "key sae.decay", "heredity.sae.train:learning_rate"),
            "", "reproduce: deviations"),
        Element(12, "T", "App B; code",
            "L1 coefficient of 3e-4 (3e-3 for TinyStories in the code).",
            ("key sae.l1_coefficient", "heredity.sae.train:calibrate", "table saes.l1_coefficient"),
            "Unless it is given, the coefficient is calibrated to the L0 of element 17: the same number is another "
            "penalty on activations of another scale, and the published code sums along tokens.",
            "reproduce: SAEs"),
        Element(13, "T", "App B eq 1",
            "Equation 1: the encoder reads the input less the mean of the data and less the decoder's bias.",
            ("key sae.subtract_mean", "heredity.sae.train:start", "heredity.sae.step:dense_step"),
            "The mean is that of the first four batches; without the key the bias alone is subtracted, since it starts "
            "near that mean already.",
            "reproduce: deviations; docs/method.md, Sparse autoencoders."),
        Element(14, "T", "App B eq 2-4",
            "Equations 2 to 4: ReLU encoder, linear decoder, overcomplete; the loss is the squared error averaged over "
            "elements plus lambda times the sum of activations.",
            ("heredity.sae.model:SAE", "heredity.sae.step:dense_step", "key sae.normalize"),
            "Activations are scaled by one number in training, and the SAE back, unless `sae.normalize = false`: the "
            "optimum is the same.",
            "docs/method.md, Sparse autoencoders."),
        Element(15, "T", "App B",
            "Dictionary columns of unit norm; the rest after Bricken et al. (untied weights from a Kaiming start, the "
            "gradient along a column removed).",
            ("heredity.kernels.step:adam_rows", "heredity.sae.model:new_sae", "key sae.encoder_start"),
            "Without the key the encoder starts as the decoder's transpose, with biases that let about 1.5 times the "
            "wanted L0 fire; from a Kaiming start half of all features fire at first.",
            "reproduce: deviations"),
        Element(16, "T", "fn 4",
            "Dead features are watched; no significant share is dead.",
            ("table saes.dead_share", "heredity.sae.train:resample", "key sae.resample_every"),
            "Dead features are resampled, as Bricken et al. do, unless `sae.resample_every = 0`; the paper speaks of "
            "no treatment.",
            "reproduce: SAEs"),
        Element(17, "T", "App B",
            "Mean L0 of 25 to 35 in all four.",
            ("table saes.l0", "key sae.l0", "heredity.sae.evaluate:quality"),
            "", "reproduce: SAEs"),
        Element(18, "T", "App B",
            "Mean squared error below .0067.",
            ("table saes.mse", "heredity.metrics:Reconstruction"),
            "",
            "reproduce: SAEs; it depends on the scale of the activations, so table `saes` has the explained variance "
            "beside it."),
        Element(19, "T", "App B",
            "Every SAE explains more than 88 % of the loss.",
            ("table saes.ce_loss_recovered", "heredity.metrics:ce_loss_recovered"),
            "The paper does not define it; read as cross-entropy recovered against zero ablation, which its code logs.",
            "reproduce: SAEs"),
    ),
    "Matching, fates, flow": (
        Element(20, "T", "3.4, fn 7",
            "Features are similar when their activations correlate over 3M tokens of the text that both models' "
            "ancestries share.",
            ("heredity.features.correlate:correlate", "heredity.study:Study.common_trace", "key lineage.tokens",
             "table matches.r"),
            "", "reproduce: scale; every count of matches rests on it."),
        Element(21, "T", "3.4, fn 8",
            "The cut on r is 0.80, settled in rounds of looking at pairs by hand.",
            ("key lineage.threshold", "table edges.rule", "table curves.threshold",
             "heredity.features.null:choose_threshold"),
            "Nobody looks at pairs: counts at 0.80 stand beside counts at every cut from .50 to .95 and at one chosen "
            "for each edge by evidence.",
            "reproduce: claims; table `edges`."),
        Element(22, "T", "3.4",
            "A feature persists, emerges or disappears by whether any partner exceeds the cut; many to many.",
            ("heredity.features.fates:fates", "table edges.persist", "table edges.emerge", "table edges.disappear"),
            "", "reproduce: matching and flow"),
        Element(23, "T", "4.1, Fig 2",
            "Figure 2: the flow of what persists, in ribbons as wide as their counts, with the share of each model "
            "that persists.",
            ("table flow.features", "table flow.rule", "table flow_links.features", "table flow_links.rule",
             "page pages/Flow.svelte", "heredity.papers.pictures:draw"),
            "", "picture (Figure 2), at r > 0.8 and at each edge's own cut; reproduce: matching and flow."),
        Element(24, "T", "4.1",
            "959 of the base's features, 5.9 % of 16,384, persist into at least one fine-tune.",
            ("table reach.features", "table reach.total", "table reach.rule"),
            "", "reproduce: matching and flow"),
        Element(25, "T", "4.1",
            "1,210 features of the merge trace back to a fine-tune.",
            ("table flow.features", "table flow.rule", "heredity.features.fates:flow"),
            "", "reproduce: matching and flow"),
        Element(26, "T", "4.1",
            "Of these, 729 emerged in a fine-tune and 481 come from the base.",
            ("table flow.origin", "heredity.features.fates:Flow.from_base", "heredity.features.fates:Flow.emerged"),
            "", "reproduce: matching and flow; reproduce: claims"),
        Element(27, "T", "1, 4.1",
            "Most of the base's features vanish in fine-tuning, and the few that persist are generic (punctuation, "
            "formatting).",
            ("table edges.disappear", "table edges.ceiling", "table verdicts.lost_share", "table group_gaps.persist",
             "heredity.papers.claims:tracking"),
            "",
            "reproduce: claims, by the paper's counts beside those of an SAE of another seed, and by verdicts on "
            "stable features."),
        Element(28, "T", "code",
            "The published code correlates mean activations over the token strings on which both features fire.",
            ("heredity.features.criteria:token_type_correlate", "table criteria.flag"),
            "Counted and flagged, but no rule of persistence: two strings in common give an r of 1 or -1.",
            "Table `criteria`."),
        Element(29, "T", "code",
            "The published code also has matches by consistency within samples, clusters of dictionary columns (UMAP, "
            "HDBSCAN), and an SAE unlike appendix B (nothing subtracted, error over a norm, L1 along tokens, rows "
            "normalized).",
            (),
            "No figure of the paper rests on the matcher or the clusters; where code and text describe different SAEs, "
            "the text's is built, which is the one that others can repeat.",
            "None."),
    ),
    "Merge and sweep": (
        Element(30, "T", "3.3, 5",
            "All weights are interpolated spherically from Lua (t = 0) to TinyStories (t = 1), from a common start; "
            "the merge is said to keep what its parents have.",
            ("heredity.lm.merge:slerp", "heredity.lm.merge:merge_states", "table merges.linear_fallback",
             "table merge_tensors.cosine"),
            "", "Table `merge_tensors`; what is kept, reproduce: claims and table `verdicts`."),
        Element(31, "T", "3.3, App A, Fig 5",
            "Figure 5: accuracy along t on both validation sets, the base's dashed.",
            ("heredity.lm.sweep:sweep", "table sweeps.accuracy", "key model.NAME.merge.sweep_points"),
            "", "picture (Figure 5)"),
        Element(32, "T", "3.3",
            "The merge is taken at t = .58, where it is equally accurate on both.",
            ("heredity.lm.sweep:crossing", "table merges.t", "key model.NAME.merge.t"),
            "", "reproduce: merge"),
        Element(33, "T", "3.3",
            "The merge is 20 % below either specialist on that one's text.",
            ("table merge_accuracy.relative", "table merge_accuracy.points", "table merge_accuracy.beside"),
            "", "reproduce: merge; relative and in points, since the paper does not say which."),
        Element(34, "T", "3.3",
            "The merge is about 20 % above the base that its parents share.",
            ("table merge_accuracy.relative", "table merge_accuracy.points", "table merge_accuracy.reference"),
            "", "reproduce: merge"),
        Element(35, "T", "fn 6",
            "TIES and other merges were tried and did worse.",
            ("key evaluation.merge_methods", "table merge_methods.points", "key model.NAME.merge.method",
             "heredity.lm.merge:ties"),
            "The paper names no settings: weights of 1 and a density of 0.5; DARE where mergekit is installed.",
            "reproduce: merge"),
    ),
    "Grouping": (
        Element(36, "T", "4.1",
            "Checked explanations of what flows from the base through Lua into the merge are grouped by hand.",
            ("heredity.features.classes:classify", "table path_groups.flowing", "table path_groups.rule"),
            "Grouped by rule from the tokens that features fire on, which needs no reader and comes out the same "
            "twice; explanations are not grouped.",
            "Table `path_groups`, at r > 0.8 and at each edge's own cut."),
        Element(37, "T", "4.1",
            "20 % of these track punctuation.",
            ("table path_groups.group", "table path_groups.share"),
            "By rule, as element 36.", "reproduce: kinds of features"),
        Element(38, "T", "4.1",
            "5 % are formatting: indentation, kinds of line breaks.",
            ("table path_groups.group", "table path_groups.share"),
            "By rule, as element 36.", "reproduce: kinds of features"),
        Element(39, "T", "4.1",
            "Most of what flows all the way is about code; the rest is hard to sort, some of it of one linguistic "
            "meaning.",
            ("table path_groups.group", "table path_groups.share", "table classes.class",
             "table feature_classes.domain"),
            "By rule, as element 36; features of no single kind of token are `mixed`.", "reproduce: kinds of features"),
    ),
    "Cases": (
        Element(40, "T", "4.2.1",
            "Case A, variable assignment: feature 16336 of the base, and its strongest match in each model, found in "
            "all four.",
            ("heredity.features.families:follow", "key case.NAME.tokens", "table cases.status", "table cases.paper",
             "table case_verdicts.paper_verdict"),
            "The base's feature is the one that fits the tokens best, not one picked by hand.",
            "reproduce: cases; table `case_verdicts`."),
        Element(41, "T", "4.2.1",
            "LLR of the token = in base, Lua, TinyStories and merge: 7.53, 6.58, 7.64, 7.19.",
            ("heredity.features.hypothesis:llr", "table cases.llr", "table cases.llr_counted"),
            "The paper does not say how a feature's activations weigh in its one number: by activation, and by count "
            "beside it.",
            "reproduce: cases, with the most that the text allows."),
        Element(42, "T", "4.2.1, Fig 3",
            "Figure 3: one text shaded by the feature in every model, r between all of them, mean 85.1 %; alike to the "
            "eye.",
            ("page pages/Feature.svelte", "table case_pairs.r", "table case_verdicts.pairs_r",
             "heredity.features.hypothesis:agreement"),
            "", "picture (Figure 3); reproduce: cases; shaded texts on the page of `heredity report`."),
        Element(43, "T", "4.2.1",
            "LLRs are taken over 3M tokens of Python, English and Lua together.",
            ("key report.case_tokens", "key report.case_corpora", "table case_verdicts.positions"),
            "Without the keys, cases are put to the sample of `report.tokens`, from all corpora, at no further cost.",
            "reproduce: deviations; table `case_verdicts`."),
        Element(44, "T", "4.2.2, Fig 4",
            "Figure 4, case B, Python's exceptions: feature 5506 of the base has no match in Lua, whose closest is "
            "14322.",
            ("table case_misses.feature", "table case_verdicts.paper_verdict", "page pages/Results.svelte"),
            "", "Table `case_misses`, where a run loses the case; drawn on the page of `heredity report`."),
        Element(45, "T", "4.2.2",
            "LLR of except: 11.38 in the base, 8.59 in Lua's closest.",
            ("table cases.llr", "table case_misses.llr"),
            "", "reproduce: cases"),
        Element(46, "T", "4.2.2",
            "Lua's closest is seven times as active on other tokens.",
            ("table cases.elsewhere_mean", "table case_misses.elsewhere_mean"),
            "", "reproduce: cases"),
        Element(47, "T", "4.2.2",
            "The two correlate at 40.81 %.",
            ("table case_misses.r",),
            "", "reproduce: cases"),
        Element(48, "T", "App D",
            "LLR is the logarithm of P(s given the hypothesis) over P(s), with P(s) the product of the unigram "
            "probabilities of the tokens of the string s.",
            ("key case.NAME.strings", "heredity.features.hypothesis:hits",
             "heredity.features.hypothesis:Hits.unigram", "table cases.llr_unigram", "table case_verdicts.unigram"),
            "Where a string can be written in several ways in tokens, their products are summed.",
            "Tables `cases` and `case_verdicts`, for one case or for every feature by `heredity find`."),
    ),
    "Explanations": (
        Element(49, "T", "App C",
            "GPT-4 Turbo explains from sampled tokens with quantized activations (the sampling of Bricken et al., the "
            "format of Bills et al.).",
            ("heredity.explain.excerpts:draw", "heredity.explain.language:LanguageJudge", "command explain"),
            "Any model behind an OpenAI endpoint or in the process; excerpts are written as JSON, which tabs and line "
            "breaks cannot spoil. A study by itself explains from token statistics, so that it runs offline.",
            "docs/explain.md; table `explanations`."),
        Element(50, "T", "App C",
            "It simulates activations on a second sample; the score is their Pearson r with the true ones.",
            ("heredity.explain.scores:simulation", "table explanations.simulation"),
            "", "Table `explanations`; detection, fuzzing and intruder stand beside it."),
        Element(51, "T", "App C",
            "USD 0.11 a feature, USD 185.68 for all of Figure 2, about 1,690 features.",
            ("heredity.explain.ledger:Budget", "heredity.explain.ledger:Ledger", "table explanations.cost",
             "command explain"),
            "", "`heredity explain` estimates, limits and books it; statistics cost nothing."),
        Element(52, "T", "App C, Fig 6",
            "Figure 6: two histograms of scores, of Lua's features that survive the merge and of those that do not, "
            "close to Bricken's.",
            ("heredity.explain.scores:compare", "table explained.effect", "table explained_scores.features"),
            "Bricken's histogram is a picture without numbers, so that nothing of it stands beside.",
            "picture (Figure 6); reproduce: explanations; reproduce: claims"),
    ),
    "Claims, limits, next checks": (
        Element(53, "T", "5",
            "Fine-tuning and merging dilute features: they are less alike than in two trainings of one recipe on one "
            "text (a median of .72 by Bricken et al.).",
            ("key model.NAME.recipe_of", "table corrected.raw_median", "table edges.persist",
             "heredity.study:Study.edges"),
            "", "reproduce: matching and flow, where the study has such a twin; table `edges`."),
        Element(54, "T", "5, Limitations",
            "Limits: under half a billion tokens, English and code, one block; next are deeper models and other "
            "domains.",
            ("key model.NAME.load", "key model.NAME.train.n_layers", "key corpus.NAME.source"),
            "", "reproduce: scale; recorded lineages have one or two blocks."),
        Element(55, "T", "review",
            "Next checks: a model of 1 to 2B weights; legal and scientific text.",
            (),
            "Such a model takes a GPU and the hub, and such text is not at hand offline; a study of either needs no "
            "more than `load` and a corpus.",
            "None."),
        Element(56, "T", "review",
            "Next check: with several fine-tunings of other seeds, do the same features persist?",
            ("key repeat.seeds", "table repeats_same.in_all", "table repeats_same.expected_all",
             "table repeats.standard_deviation"),
            "",
            "reproduce: matching and flow, where `repeat.seeds` is 2 or more; tables `repeats` and `repeats_same`."),
        Element(57, "T", "review",
            "Signs of failure: low r throughout, a merge worse than the base, an SAE without meaningful features.",
            ("heredity.analyses.match_findings:findings", "heredity.analyses.merges:ACCURACY",
             "table saes.stable_share", "table chance.parent_above"),
            "", "Notes of the report and of `heredity run`."),
    ),
    "Pairs, maps, layers": (
        Element(58, "S", "2, Table 1",
            "Pairs read before a block, unnormalized: Pythia 70m.3 and 160m.4, GPT-2 small.6 and medium.10, Gemma 2 "
            "2b.20 and 9b.33.",
            ("key stitch.NAME.source", "key stitch.NAME.target", "key stitch.NAME.source_hook_point",
             "key stitch.NAME.target_hook_point", "key model.NAME.load"),
            "The study trains a pair of its own, since the published ones are on the hub alone; any two models of one "
            "tokenizer load.",
            "reproduce: scale; table `stitch_maps`."),
        Element(59, "S", "App A",
            "Text: the first 180k samples of OpenWebText in blocks of 512 (Gemma 128), the next 1k to judge; special "
            "tokens are left out.",
            ("heredity.stitch.aligned:aligned", "key stitch.NAME.tokens", "key stitch.NAME.held_out",
             "key stitch.NAME.context_size"),
            "The text is the study's; OpenWebText has no preset, but any data set of the hub can be named.",
            "reproduce: scale; reproduce: deviations"),
        Element(60, "S", "2, eq 1-3",
            "Equations 1 to 3: affine maps up and down, trained together on the errors of both plus alpha times those "
            "of both round trips, alpha = 1.",
            ("heredity.stitch.affine:Affine", "heredity.stitch.fit:batch_loss", "heredity.stitch.fit:minimize_joint",
             "key stitch.NAME.alpha", "key stitch.NAME.method"),
            "The maps in use are the exact minimum of the same loss unless `method` names a descent, since it is "
            "better and cheaper; descents stand beside.",
            "Table `stitch_fits`."),
        Element(61, "S", "App A",
            "Recipe: Adam at 1e-4 with a cosine, gradient norm cut at 1, 2 epochs, biases from 0, about 5,120 tokens a "
            "step.",
            ("heredity.stitch.fit:fit_by_adam", "key stitch.NAME.adam.lr", "key stitch.NAME.adam.epochs",
             "key stitch.NAME.adam.batch_tokens", "table stitch_fits.lr"),
            "", "Table `stitch_fits`: `published` is this descent, `descent` one with the study's settings."),
        Element(62, "S", "App A.2, Fig 7",
            "Figure 7: alpha of 0, .1, 1 and 10 by the cross-entropy of the four ways and the loss of the carried SAE.",
            ("key stitch.NAME.alphas", "table alphas.ce_loss", "table alphas.delta_loss"),
            "Exact minima at each alpha, as element 60.", "picture (Figure 7); reproduce: maps"),
        Element(63, "S", "App A.1, Fig 6",
            "Figure 6: the target's layer is the one with the highest mean SVCCA (about .3 to .8 over the families).",
            ("heredity.stitch.affine:similarity", "table stitch_layers.svcca", "table stitch_layers.chosen"),
            "", "picture (Figure 6); reproduce: maps"),
        Element(64, "S", "Table 1",
            "Table 1: cross-entropy of stitched models: across +27, +11 and +39 % up and +17, +9.1 and +8.3 % down; "
            "round trips under 1 %, and +4.7, +1.4 and +13 %.",
            ("heredity.stitch.aligned:stitched_losses", "table stitched_models.increase"),
            "", "reproduce: maps"),
    ),
    "Carried SAEs": (
        Element(65, "S", "eq 4-6, 12, fn 2",
            "Equations 4 to 6 and 12: the SAE seen through both maps is exactly an SAE; thresholds stay; SAEs that "
            "normalize their input do not carry.",
            ("heredity.stitch.transfer:transfer_sae", "heredity.stitch.transfer:folding",
             "table sae_folding.folding_error", "heredity.sae.formats:read_sae"),
            "", "Table `sae_folding`: checked on every run."),
        Element(66, "S", "3",
            "Carried are published SAEs (sparsify TopK, Gemma Scope JumpReLU) and one of the authors' own (SAELens "
            "TopK).",
            ("key stitch.NAME.sae", "heredity.sae.formats:read_sae", "heredity.analyses.sae_transfer:SOURCE_SAE"),
            "",
            "Table `sae_transfer`; recorded runs train the source's SAE, since the published ones are on the hub "
            "alone."),
        Element(67, "S", "Table 2",
            "Table 2, own and carried: L0 16, 32 and 77; unexplained variance .17 to .52, .11 to .39, .21 to .42; loss "
            "+.36 to 2.16, +.08 to .96, +.50 to .85; dead features 5.2 to 2.9 %, below 1 %, 1.5 to 3.5 %.",
            ("table sae_transfer.l0", "table sae_transfer.fvu", "table sae_transfer.delta_loss",
             "table sae_transfer.dead_share"),
            "", "reproduce: carried SAEs"),
    ),
    "The carried SAE as a start": (
        Element(68, "S", "App D",
            "Trainer: TopK with k 64 (GPT-2 32), encoder starting as the decoder's transpose, constant 1e-4, no "
            "auxiliary loss, rows renormalized each step, raw activations; 4,096 to 65,536 features; 4B tokens in 120k "
            "steps (GPT-2 2B).",
            ("key stitch.NAME.arms_recipe", "heredity.analyses.sae_transfer:PUBLISHED", "key stitch.NAME.widths",
             "key sae.k", "table warm_starts.recipe"),
            "By default the study's [sae] is the trainer. `arms_recipe = \"published\"` is the paper's but for k, "
            "tokens and batches, which are the study's, Adam's second rate, and a b_dec that is subtracted before "
            "encoding, as in all SAEs here.",
            "reproduce: scale; table `warm_starts` names what each arm was trained by."),
        Element(69, "S", "App D",
            "Two starts, random and carried, trained alike.",
            ("key stitch.NAME.arms", "heredity.stitch.transfer:cut_to_unit", "table warm_starts.arm",
             "table warm_starts.rows"),
            "The paper does not say how carried rows get norm 1: by the study's recipe their norms move into the "
            "encoder, by the published one they are cut off.",
            "reproduce: carried starts; starts that are repaired, or keep the geometry alone, stand beside."),
        Element(70, "S", "App D",
            "FLOPs: a dense forward and backward pass of the module times the steps, with activations at hand.",
            ("heredity.stitch.savings:dense_flops", "heredity.stitch.fit:adam_flops", "table warm_starts.flops"),
            "By formula, not by torch's counter: five products of 2 d M FLOPs a vector, which gives the numbers of "
            "Table 3 at 4,096 vectors a step.",
            "Table `costs`; sparse FLOPs, seconds and the reading of the models stand beside."),
        Element(71, "S", "App D, Table 3",
            "Table 3: 8.2e16 for the small SAE, 1.2e17 for the large one, 1.4e15 for the maps, 1.2 % of a run.",
            ("table costs.flops", "table costs.share"),
            "Ours are of the vectors trained on; the published numbers fit an eighth of the 4B that the text names.",
            "reproduce: carried starts; table `costs`"),
        Element(72, "S", "App D, Fig 8b",
            "Saving: to a level of smoothed explained variance, (scratch - start - maps) / scratch; the source's SAE "
            "is not charged.",
            ("heredity.stitch.savings:reached", "heredity.stitch.savings:saving_row",
             "table savings.saved_flops_with_source"),
            "The variance is that of the same held-out vectors at every point, which needs no smoothing.",
            "reproduce: carried starts, once more with the source's SAE charged."),
        Element(73, "S", "abstract, App D",
            "30 to 50 % less near a variance of .90; up to half in the abstract.",
            ("table savings.saved_flops", "heredity.papers.claims:stitching"),
            "", "reproduce: carried starts; reproduce: claims"),
        Element(74, "S", "Fig 8b",
            "Figure 8b: saving over levels from .70 to .90 (.725 to .875), more for wide SAEs, a loss for narrow ones "
            "at low levels.",
            ("table savings_by_level.saved_flops", "key stitch.NAME.levels"),
            "", "picture (Figure 8b)"),
        Element(75, "S", "Fig 2a, 8a",
            "Figures 2a and 8a: variance along training by FLOPs.",
            ("table warm_start_curves.explained_variance", "heredity.stitch.savings:Curve"),
            "", "picture (Figures 2a, 8a)"),
        Element(76, "S", "Fig 2b",
            "Figure 2b: final dictionary vectors lie nearer to their start when it was carried.",
            ("table moved.cosine", "heredity.analyses.warm_starts:moved_rows"),
            "", "picture (Figure 2b); reproduce: carried starts"),
        Element(77, "S", "App D.2, Table 4",
            "Table 4: loss = A C^-beta, 41.2 and .16 from scratch, 18.5 and .14 carried (Pythia); 42.3 and .15, 5.0 "
            "and .10 (GPT-2).",
            ("heredity.stitch.scaling:fit_scaling", "table scaling_fits.a", "table scaling_fits.beta"),
            "The loss is the fraction of variance unexplained, from a twentieth of the training on; the paper's "
            "starting point is not stated.",
            "reproduce: carried starts; of each width, and of the frontier of all."),
        Element(78, "S", "App D",
            "Dead features come along, more of them in wider SAEs.",
            ("table warm_starts.dead_share", "table sae_transfer.dead_share"),
            "", "reproduce: carried starts"),
    ),
    "Probes": (
        Element(79, "S", "Fig 9",
            "Eight sets: three of biographies, two of reviews, code, news, languages.",
            ("key stitch.NAME.probes.sets", "key stitch.NAME.probes.sets.NAME.source", "key stitch.NAME.probes.tasks",
             "heredity.stitch.probe_sets:labeled_set"),
            "Recorded tasks are made of the study's corpora, since the eight sets are on the hub alone; any set can be "
            "named, of the hub or of local files.",
            "reproduce: probes and steering; table `probe_tasks`."),
        Element(80, "S", "eq 7, App B.2",
            "Equation 7: the k features of largest mean difference, k from 1 to 50, kept with their weights or "
            "refitted, beside native, random, dense and dense carried ones (w P^T).",
            ("heredity.stitch.probe:select", "heredity.stitch.probe:probing",
             "heredity.stitch.transfer:transfer_probe", "key stitch.NAME.probes.sizes"),
            "", "Table `probe_means`; probes are logistic regressions, which the paper leaves open."),
        Element(81, "S", "Fig 3a, 9, 10",
            "Figures 3a, 9 and 10: refitted probes about as good as native ones; unchanged ones above random but on "
            "code and languages; dense carried about as good as dense.",
            ("table probe_means.balanced_accuracy", "table probes.balanced_accuracy"),
            "", "picture (Figures 3a, 9, 10); reproduce: probes and steering"),
    ),
    "Steering": (
        Element(82, "S", "eq 8-9, App F",
            "Equations 8 and 9: the unit difference of means, clamped at the wanted text's mean at every token, from "
            "100 (or 250) pairs of EuroParl; carried as v P at length 1, without bias, its level taken anew.",
            ("heredity.stitch.steer:leveled", "heredity.stitch.steer:clamped",
             "heredity.stitch.transfer:transfer_direction", "key stitch.NAME.steering.vectors"),
            "A corpus of the study against all others, over as many vectors as are asked, in place of a language "
            "against English: EuroParl cannot be had offline, and any corpora can be named.",
            "reproduce: probes and steering"),
        Element(83, "S", "App F",
            "Judged by langdetect on answers to 163 prompts of IFEval in 20 languages, with Clopper-Pearson intervals.",
            ("heredity.stitch.steer:text_classifier", "key stitch.NAME.steering.prompts", "table steering.share",
             "table steering_classifiers.accuracy"),
            "A classifier of characters, fitted on the corpora, which knows code from prose too; prompts are "
            "beginnings of held-out texts, since IFEval and EuroParl cannot be had offline.",
            "Table `steering`, with the same intervals."),
        Element(84, "S", "eq 16",
            "Equation 16: carried over native, cut to 0..1; means of .42 and .45, in two heaps.",
            ("heredity.stitch.steer:transfer_gap", "table steering_gaps.gap"),
            "", "reproduce: probes and steering; picture (equation 16)"),
        Element(85, "S", "Tables 5, 6",
            "Tables 5 and 6: shares by language, on average native .54 and .32, carried .29 and .22 (2b and 9b); "
            "German .85 to .83, Latvian .50 to .00.",
            ("table steering.share", "table steering.wanted"),
            "By corpus, as element 82.", "reproduce: probes and steering"),
        Element(86, "S", "App F.2",
            "The gap grows with a language's frequency in the maps' text; with instruct models and chat format "
            "steering is weak and never better than native.",
            ("table steering_frequencies.r", "table steering_gaps.frequency", "key stitch.NAME.steering.chat"),
            "By corpus, as element 82; no instruct model can be had offline, so that chat format is there and on no "
            "record.",
            "reproduce: probes and steering; table `steering_frequencies`"),
    ),
    "Single features": (
        Element(87, "S", "eq 10",
            "Equation 10: r of activation times the logit weight of the token that comes, against random SAEs.",
            ("heredity.stitch.functional:attribution_correlation", "heredity.stitch.functional:random_baseline",
             "table transferred_features.attribution_r"),
            "", "Table `transfer_correlations`; the final norm's gain is folded in, which the paper leaves open."),
        Element(88, "S", "Fig 14",
            "Figure 14: most features well above random, a tail near 0, some negative.",
            ("table feature_transfer.above", "table feature_transfer.negative", "table transfer_histograms.n"),
            "", "picture (Figure 14); reproduce: single features; reproduce: claims"),
        Element(89, "S", "5.1, App H, Fig 4a",
            "Figure 4a: five rewrites of a sentence by gemma-2-9b-it (content words of another domain, same "
            "structure); structural is what fires in all versions, semantic what fires in some.",
            ("heredity.stitch.word_swaps:rewrites", "heredity.stitch.word_swaps:split_features",
             "key stitch.NAME.features.rewrites", "table transfer_classes.share_by_chance"),
            "Words are swapped within word classes of the corpus, without a language model, so that it runs offline; "
            "over texts, structural is what does so in at least half of them, which the paper leaves open.",
            "reproduce: single features; table `transfer_classes`"),
        Element(90, "S", "5.1, Fig 4b, 15",
            "Figures 4b and 15: structural features carry steadily, semantic ones fill both ends; structural ones are "
            "denser.",
            ("table transfer_percentiles.share", "table transfer_classes.density", "table transfer_class_tests.effect"),
            "Classes as in element 89.",
            "picture (Figures 4b, 15); reproduce: single features; reproduce: claims"),
        Element(91, "S", "Table 8",
            "Table 8: examples: geometry and -bility (semantic), nouns after the, the token after and (structural).",
            ("table class_examples.tokens", "table class_examples.context"),
            "Classes as in element 89.", "Table `class_examples`."),
        Element(92, "S", "5.2, Fig 5a",
            "Entropy features; Figure 5a: largest activation against the share in the lowest 2 % of the unembedding, "
            "of 2,000 features; two keep both.",
            ("heredity.stitch.functional:null_share", "table null_shares.share", "table null_shares.push",
             "table entropy_features.kept", "table transfer_null_space.kept"),
            "Largest activation times the norm of the direction, which is not 1 once it is carried; drawn are 500 "
            "features at random, and all that are high in both.",
            "picture (Figure 5a); reproduce: single features; table `transfer_null_space`"),
        Element(93, "S", "5.2, Fig 5b",
            "Attention deactivation: a score by query and first key, then path ablation; Figure 5b: loss of attention "
            "to BOS up to .3, rising with activation.",
            ("heredity.stitch.functional:head_scores", "heredity.stitch.functional:path_ablation",
             "table attention_curves.attention_drop"),
            "", "picture (Figures 5b, 16); reproduce: single features; table `attention_curves`"),
        Element(94, "S", "5.2, Fig 16",
            "Figure 16: the same feature turns another head on (11,2: down to -.6); its null-space share goes from .27 "
            "to .77.",
            ("heredity.stitch.functional:moved_heads", "table deactivation_features.effect",
             "table deactivation_features.null_share"),
            "",
            "picture (Figures 5b, 16); reproduce: single features; table `deactivation_features`"),
    ),
    "Limits, cost, what a reviewer asked": (
        Element(95, "S", "7",
            "Limits: one family and tokenizer, web text, no chat tokens, labels by a model, correlation only, one "
            "layer a pair; next are other families, LoRA.",
            ("heredity.stitch.aligned:aligned_texts", "heredity.stitch.aligned:common_ends",
             "key stitch.NAME.source_hook_point", "key stitch.NAME.steering.chat", "key model.NAME.lora"),
            "Across tokenizers in Python, not in a study; a second layer is a second stitch. Chat format is in "
            "steering alone, and no adapter is carried by itself.",
            "docs/stitch.md, Across tokenizers."),
        Element(96, "S", "App J",
            "About 10,000 GPU hours on cards of 24 GB.",
            ("heredity.results:Run.seconds", "command check"),
            "Recorded runs are of two CPU cores at the sizes in `scale`.",
            "Head of the text that `heredity reproduce -o` writes."),
        Element(97, "S", "review",
            "Asked: the saving depends on the maps' cost and on cached activations; is a trained SAE's geometry alone "
            "a better start?",
            ("heredity.stitch.transfer:turned", "key stitch.NAME.arms", "table savings.saved_seconds",
             "table costs.seconds"),
            "", "reproduce: carried starts; reproduce: claims"),
    ),
}  # fmt: skip
"""Elements by heading, in the order of the papers."""
ELEMENTS = tuple(element for part in PARTS.values() for element in part)
