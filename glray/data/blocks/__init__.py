"""From documents to token blocks, in this order: what a source is now and whether its blocks exist
(``snapshot``), its tokenizer (``encoding``, ``tokenizer``), runs of documents encoded one by one
(``shards``), the split (``heldout``), blocks cut from the shards (``assembly``), and what lies on
disk at the end (``token_blocks``). ``glray.ray.prepare`` drives them."""
