"""Looking at the gradient through time: its terms by state."""
