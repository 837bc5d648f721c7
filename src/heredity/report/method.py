"""What the words of the report mean, one line each."""

from __future__ import annotations

DEFINITIONS: tuple[tuple[str, str], ...] = (
    ("feature", "One column of one sparse autoencoder, named model/index."),
    ("live", "Fired at least once on the tokens of the comparison; all others are dead and counted apart."),
    (
        "r",
        "Pearson correlation of two features’ activations over aligned positions of the corpora both models "
        "have seen, zeros included.",
    ),
    (
        "persist",
        "A parent feature with at least one child feature above the threshold; existence-based, so many-to-many.",
    ),
    ("disappear", "A live parent feature without one."),
    ("emerge", "A live child feature that no parent feature matches above the threshold."),
    ("mutual", "Pairs above the threshold that are each other’s best match (one_to_one in summary.json)."),
    (
        "threshold",
        "On r. By evidence: where best r falls apart into two groups, a quarter to half of the way between the r that "
        "99 of 100 live parent features stay below by chance and the "
        "median best r between two SAEs of the parent (1 where one SAE reads both models; without a second SAE, the r "
        "that a twentieth of the features exceeds). Or given by the study.",
    ),
    (
        "the paper",
        "Horn & Elliott (arXiv 2410.12391) call a feature kept when r exceeds 0.8, whatever the SAEs; its count stands "
        "beside ours with a ceiling and a floor of its own.",
    ),
    (
        "interval",
        "Block bootstrap over documents: whole documents are drawn again with replacement, since neighboring tokens "
        "are alike. It covers the choice of text, not that of the SAEs’ seeds.",
    ),
    (
        "ceiling",
        "Share of the parent’s live features that persist between two SAEs of the parent itself, with the "
        "initialization of the edge: an upper bound, since both share their input noise. “Of ceiling” is the share "
        "that persists over it.",
    ),
    ("floor", "Share that persists when the child’s activations are shifted against the parent’s."),
    (
        "more than chance",
        "Each best r has a p-value from shifted comparisons of features that fire about as often; at the false "
        "discovery rate given (Benjamini & Hochberg), so large a share of those called more than chance is expected to "
        "be chance.",
    ),
    (
        "corrected r",
        "r over the r that the same feature reaches in a second SAE of its own model, as for any noisy measurement "
        "(Spearman’s correction for attenuation).",
    ),
    (
        "rules",
        "Other ways to call a feature kept, each on a score of its own: mutual best match; one-to-one assignment; "
        "cosine of decoder directions; encoder and decoder both pointing alike (Paulo & Belrose, arXiv 2501.16615); "
        "means over token strings, which is no correlation over positions and far too generous. A feature splits when "
        "two or more features of the child have its firings between them, and merges the other way round.",
    ),
    (
        "strata",
        "Live features by how often they fire: rare on fewer than 30 tokens of the sample, dense on more than a tenth, "
        "usual between. The r of a rare feature rests on little.",
    ),
    (
        "really new",
        "Emerged, and hardly in the parent’s activations either (latent scaling; Minder et al., arXiv 2504.02922): ν "
        "is how much of a child’s feature they hold, 1 for all; new is below 0.2 in what the parent’s SAE leaves out "
        "and below 0.5 in what it keeps. Missed: the parent has it, only its SAE found no such feature.",
    ),
    (
        "shift",
        "How far a feature’s decoder direction turns when the parent’s SAE is continued on the child’s text (data) or "
        "on the child’s activations (weights), one after the other, in both orders.",
    ),
    ("between seeds", "The study run again with other seeds for fine-tunes and SAEs: mean ± standard deviation."),
    (
        "noise",
        "Both ends carry the noise of their SAE, so the r of a feature that is fully kept stays below 1: "
        "counts of loss are upper bounds.",
    ),
    (
        "SAEs",
        "“Joint”: one SAE is trained on all models together and reads each of them, so that a feature keeps its index "
        "and an unchanged model keeps everything. “Continued”: the child’s SAE starts from its parent’s, a merge’s "
        "from that of the parents’ nearest common ancestor. “Independent”: every SAE starts anew.",
    ),
    (
        "flow",
        "Each live feature of a merge once: from the base, emerged in one parent, in several, or novel; it "
        "goes back to the base when any of its matches does.",
    ),
    (
        "t",
        "Runs from the first parent (0) to the second (1), over whole tensors; almost parallel tensors are "
        "interpolated linearly.",
    ),
    ("LLR", "log( P_act(token in set) / P_data(token in set) ), weighting firings by activation, or by count."),
    (
        "explained variance",
        "1 − ‖x − x̂‖² / ‖x − mean x‖², pooled over tokens. CE loss recovered is measured against zero ablation.",
    ),
)
"""Word and meaning, in the order they are shown."""

STITCHES: tuple[tuple[str, str], ...] = (
    (
        "stitch",
        "Two affine maps between the residual streams of a source and a target: up, and down back. After Chen et al. "
        "(arXiv 2506.06609).",
    ),
    (
        "loss of the maps",
        "Mean square error of up, of down, and of each way there and back, on held-out tokens (equation 3). Joint is "
        "its minimum from one pass over the tokens, adam the published descent, ridge each map for itself, procrustes "
        "a turn and a scale.",
    ),
    (
        "ways",
        "The back of one model goes on from the mapped front of the other, or from its own, mapped there and back. The "
        "rise is over the model whose back half predicts.",
    ),
    (
        "carried SAE",
        "up(SAE(down(x))) as one SAE of the target. Calibrations refit its bias or its decoder on the target’s "
        "activations, without descent.",
    ),
    (
        "saving",
        "1 − cost of a start, its maps and its training, over that of the random start, to the same explained variance "
        "on held-out vectors; once more with the source’s SAE counted. None where one of the two never gets there. "
        "Geometry is the source’s SAE turned at random.",
    ),
    (
        "probes",
        "Logistic regression on the mean activations of k features over a text. On the target, features and weights "
        "are the source’s (unchanged), or only the features (refitted), or random ones; native reads the target’s SAE.",
    ),
    (
        "steering gap",
        "Share of texts that a classifier takes for the wanted kind under the carried direction, over that under the "
        "model’s own, clipped to 0 … 1; brackets are Clopper-Pearson intervals.",
    ),
    (
        "structural, semantic",
        "Features that keep firing when the content words of a text are swapped for others, and those that do not.",
    ),
)
"""The same, of stitches."""
