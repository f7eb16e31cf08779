"""Layers: from a whole sequence to a whole sequence, made of cells, stacked and regularised."""
