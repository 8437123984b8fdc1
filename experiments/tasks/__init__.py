"""Real models with real data behind one interface, one file each, as `spectrim sweep` takes them."""
