"""The training loop of ``hrnet-fast train``: plain PyTorch, resumable, for one device or several."""
