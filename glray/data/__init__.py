"""From text to batches. In order: ``read`` the documents of a source, make them into token
``blocks``, put the blocks of all sources together (``corpus``), determine which windows each step
trains on (``order``) and read them (``windows``). Beside that: ``targets`` of evaluations, the
``checksum`` of what was trained, ``inspection`` for people."""
