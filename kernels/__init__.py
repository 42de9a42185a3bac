"""Kernels without ``torch.library``: Triton in ``triton/``, headers for CUDA C++ and the host in ``cuda/``.

This folder is the package ``hrnet_fast.kernels``.
"""
