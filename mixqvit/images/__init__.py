"""Images: the embedded handwritten digits, folders, archives, tables, and data sets of the Hugging Face hub."""
