"""From documents to token blocks, in this order: what a source is now and whether its blocks exist
(``snapshot``), its tokenizer (``encoding``, ``tokenizer``), runs of documents encoded one by one
(``shards``), the split (``heldout``), blocks cut from the shards (``assembly``), what lies on disk
at the end (``token_blocks``), and what of the held-out text is in training text too
(``near_copies``). ``glray.ray.prepare`` drives them."""
