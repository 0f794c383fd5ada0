"""Several processes that train one run.

`process_group` is the protocol that the training loop knows, and a run on one process;
`torch_group` the processes that torch.distributed joins, with the `buckets` that they sum gradients
in and, in `lost`, what is said when one is gone. `partition` gives each process its part of every
window, and `random_numbers` its own random streams.
"""
