"""Kernels that run all steps of a sequence in one launch on an accelerator, for any gated cell."""
