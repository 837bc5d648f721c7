"""The two papers that heredity implements: their figures, settings and claims as data, and ours beside them."""
