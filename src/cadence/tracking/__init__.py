"""From the folder of a run to a tracking server."""
