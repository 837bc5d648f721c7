"""What becomes of features along the model graph: activations, matches, fates, controls and hypotheses."""
