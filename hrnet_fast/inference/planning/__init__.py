"""Planning: a model is traced, imported as a graph, rewritten by passes, and lowered to a plan."""
