"""Where networks are and in which precision: the arguments of ``pipe.to`` and their checks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sfumato.errors import ConfigError, InputError, did_you_mean
from sfumato.pipelines.offload import Offload
from sfumato.quantization.names import check_kind

logger = logging.getLogger(__name__)


def one_dtype(torch_dtype: Any, dtype: Any) -> Any:
    """The data type given under the older or the newer keyword.

    Raises:
        InputError: when both are given.
    """
    if torch_dtype is not None and dtype is not None:
        raise InputError("`torch_dtype` and `dtype` mean the same.", hint="Pass only one of them.")
    return dtype if torch_dtype is None else torch_dtype


def check_dtypes(dtype: Any, names: Collection[str]) -> None:
    """Raise `ConfigError` when a table of data types names no component of the pipeline."""
    known = ["default", *sorted(names)]
    for name in dtype if isinstance(dtype, Mapping) else ():
        if name not in known:
            raise ConfigError(
                f"`torch_dtype` names the unknown component {str(name)[:80]!r}."
                f"{did_you_mean(str(name)[:80], known)}",
                hint=f"Known are: {', '.join(known)}.",
            )


def dtype_for(dtype: Any, name: str) -> Any:
    """The data type for one component, from what `one_dtype` gave."""
    if isinstance(dtype, Mapping):
        return dtype.get(name, dtype.get("default"))
    return dtype


def check_quantization(quantization: Any, names: Collection[str]) -> None:
    """Raise when what quantises a pipeline's networks is no way, or names no component of it.

    Raises:
        InputError: there is no such way to quantise.
        ConfigError: a table names an unknown component.
    """
    table = quantization if isinstance(quantization, Mapping) else {"unet": quantization}
    for name, kind in table.items():
        if name not in names and table is quantization:
            raise ConfigError(
                f"`quantization` names the unknown component {str(name)[:80]!r}."
                f"{did_you_mean(str(name)[:80], names)}",
                hint=f"Known are: {', '.join(sorted(names))}.",
            )
        if kind is not None:
            check_kind(kind, of_files=True)


def read_arguments(
    args: Sequence[Any], device: torch.device | str | int | None, dtype: torch.dtype | None
) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the data type in ``to(device)``, ``to(dtype)`` or ``to(device, dtype)``.

    Raises:
        InputError: when the arguments are in the wrong order, too many, or given twice.
    """
    if len(args) > 2:
        raise InputError(
            "Please make sure to pass at most two arguments (`device` and `dtype`) `.to(...)`"
        )
    if len(args) == 2 and isinstance(args[0], torch.dtype):
        raise InputError(
            "When passing two arguments, make sure the first corresponds to `device` and the"
            " second to `dtype`."
        )
    first_is_dtype = len(args) == 1 and isinstance(args[0], torch.dtype)
    places = args[:0] if first_is_dtype else args[:1]
    types = args[:1] if first_is_dtype else args[1:]
    device = _once("device", device, places)
    dtype = _once("dtype", dtype, types)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InputError(f"`dtype` has to be a torch.dtype but is {str(dtype)[:80]!r}.")
    return (None if device is None else torch.device(device)), dtype


def _once(name: str, keyword: Any, positional: Sequence[Any]) -> Any:
    given = [value for value in (keyword, *positional) if value is not None]
    if len(given) > 1:
        raise InputError(
            f"You have passed `{name}` both as an argument and as a keyword argument. Please only"
            " pass one of the two."
        )
    return given[0] if given else None


def require_device(device: torch.device) -> None:
    """Raise `InputError` when an accelerator is meant that this machine does not have."""
    if device.type not in ("cuda", "mps", "xpu"):
        return
    present = torch.accelerator.current_accelerator(check_available=True)
    if present is None or present.type != device.type:
        available = "only 'cpu'" if present is None else f"'cpu' and '{present.type}'"
        raise InputError(
            f"There is no device '{device}' here; this installation of torch finds {available}.",
            hint=f"Use '{'cpu' if present is None else present.type}'.",
        )


def check_offload(offload: Offload | None, device: torch.device) -> None:
    """Refuse, or warn of, moving networks by hand that move by themselves."""
    if offload is None or device.type == "cpu":
        return
    if offload.by_layer:
        raise InputError(
            "It seems like you have activated sequential model offloading by calling"
            " `enable_sequential_cpu_offload`, but are now attempting to move the pipeline to an"
            " accelerator. This is not compatible with offloading.",
            hint="Leave out the move, or call `remove_all_hooks()` first.",
        )
    logger.warning(
        "It seems like you have activated model offloading by calling `enable_model_cpu_offload`,"
        " but are now manually moving the pipeline to %s. The networks will no longer take turns"
        " there, and the memory gains are lost.",
        device,
    )


def warn_of_slow_type(networks: Mapping[str, nn.Module]) -> None:
    """Log a warning when a network computes in float16 on the CPU."""
    for name, network in networks.items():
        half = dtype_of([network]) == torch.float16
        if half and device_of([network]).type == "cpu":
            logger.warning(
                "`%s` computes in float16 on the CPU, which is slow and loses accuracy: pass"
                " torch.float32 or torch.bfloat16 to `to()`.",
                name,
            )
            return


def device_of(networks: Iterable[nn.Module]) -> torch.device:
    """The device of the first network that has tensors; the CPU when there is none."""
    return next((tensor.device for tensor in _tensors(networks)), torch.device("cpu"))


def dtype_of(networks: Iterable[nn.Module]) -> torch.dtype:
    """The data type of the first network that has tensors; float32 when there is none."""
    floating = (t.dtype for t in _tensors(networks) if t.is_floating_point())
    return next(floating, torch.float32)


def _tensors(networks: Iterable[nn.Module]) -> Iterable[torch.Tensor]:
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()
