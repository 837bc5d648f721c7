"""Sparse autoencoders: the model, its training, its quality figures and the formats it is stored in."""
