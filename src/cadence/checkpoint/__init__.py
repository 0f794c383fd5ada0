"""What is saved of a run: its state, the file format, the folder."""
