"""The checker of annotations and tensor shapes under pytest: beartype, where an int is a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
