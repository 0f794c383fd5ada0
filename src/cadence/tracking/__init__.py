"""From the folder of a run to a tracking server; no file here imports MLflow.

`run_file` holds a run's id, status and upload state and `metrics_file` its points; `metrics_logger`
chooses which points are kept, with the state of the `machine`; `upload` sends both to a server, in
the background or by `sync` after the session; `address` checks where a tracking URI points, and
`provenance` says which code and versions ran. `tracking.mlflow` is the server.
"""
