"""Kernels for a GPU, by the Mosaic GPU backend of Pallas, and the parts they share."""
