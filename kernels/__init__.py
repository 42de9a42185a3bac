"""Kernels, free of ``torch.library``: Triton in :mod:`triton`, CUDA C++ headers in ``cuda/``. None yet.

The package sees this folder as ``hrnet_fast.kernels``.
"""
