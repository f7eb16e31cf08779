"""Short programs in Flax and Equinox, as their users write them; `swap.py` replaces the layer."""
