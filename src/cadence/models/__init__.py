"""Models: one file each; conf/model/NAME.yaml names one as ``_target_``."""
