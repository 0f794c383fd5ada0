"""The commands: compose the config, build, run."""
