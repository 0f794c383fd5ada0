"""What is known of a run without torch: numbers that are checked, and what follows from them.

`numbers` refuses impossible numbers, `window` turns mini-batches into windows, `shares` gives each
process its part of them, `clock` says how far a run is and where it ends, `schedule` and `scaling`
give the learning rate by samples and by effective batch.
"""
