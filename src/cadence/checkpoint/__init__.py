"""What is saved of a run.

`state` is everything that a run needs to go on, `random_state` the random generators' part of it,
`file_format` how it lies in a file, and `folder` which files a run keeps.
"""
