"""A study as one HTML file that needs no network, with all its numbers beside it."""
