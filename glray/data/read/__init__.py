"""Reading: the files that a source consists of (``sources``) and their ``documents``."""
