"""What a model's output is, and how good it is."""
