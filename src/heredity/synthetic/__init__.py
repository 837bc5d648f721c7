"""Planted worlds: pairs of models whose true features and fates are known, to measure every match rule against."""
