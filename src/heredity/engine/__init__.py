"""Runs stages, keeps what they make, and shares their work among processes."""
