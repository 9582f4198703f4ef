"""Long work in pieces: what a stage is, and the one runner that computes, saves and reports all of them."""
