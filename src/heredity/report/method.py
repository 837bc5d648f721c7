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
    ("one to one", "Pairs above the threshold that are each other’s best match."),
    (
        "ceiling",
        "Share of the parent’s live features that persist between two SAEs of the parent itself, with the "
        "initialization of the edge: an upper bound, since both share their input noise.",
    ),
    ("floor", "Share that persists when the child’s activations are shifted against the parent’s."),
    (
        "noise",
        "Both ends carry the noise of their SAE, so the r of a feature that is fully kept stays below 1: "
        "counts of loss are upper bounds.",
    ),
    (
        "SAEs",
        "“Continued”: the child’s SAE starts from its parent’s, a merge’s from that of the parents’ nearest "
        "common ancestor. “Independent”: every SAE starts anew.",
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
