"""How the learning rate follows the effective batch.

A larger step_size (mini-batches per update) averages more items into each gradient. At an
unchanged learning rate a sweep over it would measure the learning rate instead, so a rule scales it
from the effective batch at which it was chosen. Adam's second moment keeps its half-life in items.

Sources: linear, Goyal et al. (2017), arXiv 1706.02677; square root, Malladi et al. (2022), arXiv
2205.10287; beta2's half-life, Marek et al. (2025), arXiv 2507.07101.
"""

from collections.abc import Mapping
from typing import Any

RULES = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""The power of the batches' ratio that multiplies the learning rate."""


def check_rule(rule: str) -> None:
    """Refuse a rule that there is not.

    Raises:
        ValueError: There is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"scaling={rule}: no such rule; choose one of {', '.join(RULES)}")


def scaled(
    optimizer: Mapping[str, Any], rule: str, effective_batch: float, reference: float
) -> dict[str, Any]:
    """Return an optimizer's arguments, scaled to its effective batch.

    Args:
        optimizer: Its arguments; ``lr`` is scaled, and ``betas[1]`` where there is one.
        rule: ``none``, ``sqrt`` or ``linear``.
        effective_batch: Items per update, over all processes.
        reference: Items per update for which the arguments were chosen.

    Raises:
        ValueError: There is no such rule.
    """
    check_rule(rule)
    arguments = dict(optimizer)
    if rule == "none":
        return arguments
    ratio = effective_batch / reference
    if "lr" in arguments:
        arguments["lr"] = arguments["lr"] * ratio ** RULES[rule]
    if "betas" in arguments:
        first, second = arguments["betas"]
        arguments["betas"] = [first, second**ratio]
    return arguments
