"""Data sets, how they are cut into clients, and how images are varied."""
