"""Modules that compute otherwise in training mode, as suspects."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cadence.certify.cause import Cause, Suspect, named
from cadence.certify.trial_passes import TrialPasses
from cadence.engine.device import device_of


def modules_in_training(model: nn.Module) -> list[Suspect]:
    """Return each class of modules that is in training mode as a suspect."""
    classes: dict[type[nn.Module], dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if module.training or _lacks_statistics(module):
            classes.setdefault(type(module), {})[name] = module
    return [_training_suspect(kind, modules) for kind, modules in classes.items()]


def _lacks_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module normalises over the micro-batch in evaluation mode as well."""
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _training_suspect(kind: type[nn.Module], modules: Mapping[str, nn.Module]) -> Suspect:
    where = named(kind, list(modules))
    cause = Cause(
        "training mode",
        f"{where} in training mode: it computes a sample otherwise in other company, or changes "
        "from one pass to the next",
        "keep trainer.microbatch_size=null, so that each mini-batch passes as the loader made it; "
        "or put it in eval()",
    )
    if issubclass(kind, _BatchNorm):
        cause = Cause(
            "batch norm",
            f"{where} normalises over the samples of a micro-batch",
            "keep trainer.microbatch_size=null, so that each mini-batch is normalised as the "
            "loader made it; or use GroupNorm or LayerNorm",
        )
    random_masks = Cause(
        "random",
        f"{where} draws random masks, each split its own",
        "none is needed to train",
        tuple(modules),
    )
    return Suspect(cause, partial(_evaluated, list(modules.values())), random_masks)


@contextmanager
def _evaluated(modules: Sequence[nn.Module], trial: TrialPasses) -> Iterator[TrialPasses]:
    """Put these modules, and not their children, in evaluation mode."""
    training = [module for module in modules if module.training]
    lacking = [module for module in modules if _lacks_statistics(module)]
    for module in training:
        module.training = False
    for module in lacking:
        zeros = torch.zeros(module.num_features, device=device_of(trial.model), dtype=trial.dtype)
        module.running_mean, module.running_var = zeros, zeros + 1
    try:
        yield trial
    finally:
        for module in training:
            module.training = True
        for module in lacking:
            module.running_mean = module.running_var = None
