"""Tasks: what a model's outputs mean, how good they are, and what can be asked of them."""
