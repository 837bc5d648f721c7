"""Affine maps between two models, and what they carry: SAEs, probes and steering vectors."""
