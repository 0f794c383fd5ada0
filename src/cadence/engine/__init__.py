"""One window: its gradient, how it is run, and its update.

`accumulation` is the window contract (gradient, items, loss), with the sums that need more than
``.grad`` in `gradient_sums`. `microbatching` runs a window: sizes and threads by measuring in
`autotune`, threads by default in `threads`, too little memory in `out_of_memory`, mini-batches that
must stay as they are in `coupling`. `update` goes from the gradient to new weights. `noise_scale`
estimates the gradient noise scale, `device` finds device, precision and compiled forwards,
`preserve` undoes what is only tried, and `private_torch` holds what is private to torch.
"""
