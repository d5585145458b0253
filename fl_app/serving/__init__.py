"""The HTTP service over the runs: what they are, and predictions of their models."""
