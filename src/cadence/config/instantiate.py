"""From a config node to the object that its ``_target_`` makes."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import execution_whitelist, instantiate

from cadence.config import trust
from cadence.config.errors import ConfigError
from cadence.system.secrets import in_one_line


def build(group: str, node: Mapping[str, Any], *first: Any, **filled: Any) -> Any:
    """Call what a config node names as ``_target_`` with the node's other keys.

    Args:
        group: What errors call the node.
        node: The node. Nodes with a ``_target_`` inside it are built first.
        first: Positional arguments, which no config can hold.
        filled: Values for keys that the node has as null; keys it does not have are not passed.

    Raises:
        ConfigError: A target is not trusted or cannot be imported, or its arguments do not fit.
    """
    given = {**node, **{key: filled[key] for key in filled if node.get(key, "") is None}}
    target = node["_target_"]
    trusted = execution_whitelist(trust.check(group, given), reset=True)
    try:
        make = instantiate(
            {**given, "_partial_": True}, _convert_="all", _execution_whitelist_=trusted
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, ImportError):
            raise ConfigError(
                f"{group}._target_={target}: cannot be imported; is it spelled right, and is its "
                "folder on PYTHONPATH?"
            ) from error
        raise trust.refusal(group, target, in_one_line(error)) from error
    try:
        # The target is authorised; Hydra would authorise its result as well, if that is callable,
        # which every torch module is.
        return make.func(*first, *make.args, **make.keywords)
    except (TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{group}._target_={target}: {in_one_line(error)}") from error
    except ValueError as error:
        if target.startswith("cadence."):  # it names the key itself
            raise
        raise ConfigError(f"{group}._target_={target}: {in_one_line(error)}") from error
