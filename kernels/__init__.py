"""Kernels, free of ``torch.library``: Triton in ``triton/``, headers for CUDA C++ and the host in ``cuda/``.

The package sees this folder as ``hrnet_fast.kernels``.
"""
