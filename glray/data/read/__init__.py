"""Reading: which files a source consists of (``sources``), the documents in them (``documents``)."""
