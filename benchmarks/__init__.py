"""Measurements of this project, and of others beside it."""
