"""Files (`atomic_write`), `locks`, `signals`, `secrets` and the allocator (`malloc`)."""
