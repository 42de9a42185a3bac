"""From a model to a plan: its forward recorded, read as a graph, regrouped, and lowered to steps over buffers."""
