"""Files, locks, signals, secrets and the memory allocator of this machine."""
