"""The second interval holds what a third training gives; untrained dictionaries are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from heredity.features.ends import end_of
from heredity.features.reference_edges import codebook, neurons, random_decoder, retrained_interval, untrained
from heredity.features.verdicts import share_interval
from heredity.sae.model import new_sae

rng = np.random.default_rng(0)


def test_the_second_interval_covers_a_third_training_and_the_first_does_not():
    # Each feature is lost in a share of trainings of its own.
    often, covered = rng.beta(1, 4, (400, 300)), []
    for lost in (rng.random((3, *often.shape)) < often).transpose(1, 0, 2):
        share, third = lost[0].mean(), lost[2].mean()
        first = share_interval(int(lost[0].sum()), lost.shape[1])
        low, high = retrained_interval(share, first, lost[0], lost[1])
        assert low < first[0] <= share <= first[1] < high
        covered.append((first[0] <= third <= first[1], low <= third <= high))
    of_first, of_second = np.mean(covered, axis=0)
    assert of_first < 0.93 <= of_second


def test_untrained_dictionaries_fire_as_often_and_only_neurons_are_the_same_under_two_seeds():
    x = (3 + rng.standard_normal((600, 8))).astype(np.float32)
    end = end_of([new_sae(8, 24, "topk", 3)], x[:400], x[400:])
    for make, size in ((codebook, 24), (random_decoder, 24), (neurons, 16)):
        own, other = untrained(end, replace(end, x=x[200:], fitting=x[:200]), make, 5)
        assert own.saes[0].W_dec.shape == (size, 8) and len(other.x) == 400
        assert all(round(acts.l0) == 3 for acts in (*own.acts, *other.acts)), "around the mean, not around 0"
        assert bool((own.saes[0].W_dec == own.saes[1].W_dec).all()) == (make is neurons)
