"""Where models come from: one class per kind of source, which knows all of it; `factory` finds the one that is meant.

A new source is a file here and a name in the list below, which registers it. Importing them needs neither torch nor
timm, so that a page lists studies at once: what loads is imported where it loads.
"""

from mixqvit.models.sources import checkpoint_file, embedded, local_folder, timm_model  # noqa: F401
