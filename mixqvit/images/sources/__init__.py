"""Where images come from: one class per kind of source, which knows all of it; `factory` finds the one that is meant.

A new source is a file here and a name in the list below, which registers it; they are asked in this order, files by
their name before files by their content. Importing them needs no torch, so that a page says at once what can be named:
what loads is imported where it loads.
"""

from mixqvit.images.sources import digits, folder, table, zips, tars, parquet, huggingface  # noqa: F401, I001
