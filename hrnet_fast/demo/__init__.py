"""The demonstration: checkpoints on a photograph, executed in every way that this machine allows."""
