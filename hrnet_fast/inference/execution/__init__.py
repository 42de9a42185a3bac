"""Execution: plans run by one C++ program, PyTorch's operators or a CUDA graph; and the evaluator, their oracle."""
