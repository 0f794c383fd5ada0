"""Models: one file each (mlp, cnn, gpt).

A model is any callable that returns a module; conf/model/NAME.yaml names it as ``_target_`` and
gives it the data's ``input_shape`` and ``outputs``. Nothing is loaded until a model is named.
"""
