"""The only package that knows MLflow.

`tracker` is one run's callback; `server_process` and `server` are where its folder is uploaded to,
in a process of its own or in this one; `client` opens MLflow's client, `database` makes its SQLite
tables and `names` says what it takes. `sweep_runs` keeps a sweep's runs, `single_run` what a
command found out, `logged_model` and `example` a trained model.
"""
