"""Evaluation of networks by the authors' protocols: crops, test-time augmentation, decoding and metrics."""
