"""A small Flower app of the usual kind."""
