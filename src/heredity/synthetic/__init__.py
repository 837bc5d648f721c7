"""Planted worlds: pairs of models with known true features and fates, to validate every matching rule."""
