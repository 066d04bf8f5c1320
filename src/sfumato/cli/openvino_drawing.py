"""From a request to pictures by OpenVINO, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.cli.array_drawing import draw_with
from sfumato.cli.drawn import Drawn
from sfumato.cli.request import Request
from sfumato.runtime import engines
from sfumato.runtime.machine import this_machine


def draw(request: Request) -> Iterator[Drawn]:
    """Load the model, then yield each picture as soon as it is there.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        SfumatoError: when the model cannot be loaded, is not the one that drew the picture to
            replay, or does not take the request.
    """
    engines.find("openvino", {})
    from sfumato.runtime.openvino.compiled import Settings
    from sfumato.runtime.openvino.text_to_image import OpenVinoNetworks

    path, dtype = request.model.path, request.recipe.dtype
    if dtype in (None, "auto"):
        files = (path / "unet").glob("*.safetensors")
        dtype = this_machine().dtype_for_size(sum(file.stat().st_size for file in files))
    settings = Settings(dtype, request.threads or this_machine().processors)
    return draw_with(request, "openvino", dtype, lambda: OpenVinoNetworks.load(path, settings))
