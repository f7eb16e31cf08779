"""The seams, the one registered derivative, the explicit reverse pass and the input checks."""
