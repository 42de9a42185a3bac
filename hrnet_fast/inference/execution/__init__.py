"""Plans carried out: one C++ program, PyTorch's operators, or a CUDA graph; and the interpreter, their oracle."""
