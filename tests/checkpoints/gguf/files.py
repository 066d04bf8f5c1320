"""Sound GGUF files, written by the format's own package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str] | str = "F16",
    *,
    reshape: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write with the oracle; a quantised type counts where a tensor's rows can be divided.

    Args:
        kinds: a type for all, or by name of tensor (others are F16).
        reshape: reshape weights whose rows cannot be divided, as some writers do.
        notes: text beside the tensors.
    """
    writer: Any = gguf.GGUFWriter(path, "sd1")
    for key, value in (notes or {}).items():
        writer.add_string(key, value)
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        kind = kinds if isinstance(kinds, str) else kinds.get(name, "F16")
        quantised = gguf.GGMLQuantizationType[kind]
        count, _ = gguf.GGML_QUANT_SIZES[quantised]
        if values.ndim < 2:
            quantised = gguf.GGMLQuantizationType.F32
        elif count > 1 and values.shape[-1] % count:
            if reshape and values.size % 256 == 0:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
                values = values.reshape(-1, 256)
            else:
                quantised = gguf.GGMLQuantizationType.F16
        raw = gguf.quantize(np.ascontiguousarray(values), quantised)
        writer.add_tensor(name, raw, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
