"""``@triton.jit`` kernels and their launchers, one file per operator."""
