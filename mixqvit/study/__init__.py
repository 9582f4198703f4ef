"""A study: one model, its images and settings; the stages, and where results are saved."""
