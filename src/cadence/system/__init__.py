"""This machine: `atomic_write` of files, `locks`, `signals`, `secrets` and the allocator (`malloc`)."""
