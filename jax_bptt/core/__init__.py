"""The seams, the one `custom_vjp`, the explicit reverse pass and the input checks."""
