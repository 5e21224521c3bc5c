"""OpenVINO without its converter, which reports to an analytics service: the one place that imports it.

`import openvino` also imports `openvino.tools.ovc`, of which nothing here is used. On that import it reports to an
analytics service, under a number of its own that it keeps in the home folder. OpenVINO (2025.2 to 2026.4) does
without it, as where it is not installed, and imports in two thirds of the time.
"""

from __future__ import annotations

import sys

_CONVERTER = "openvino.tools.ovc"

_absent = _CONVERTER not in sys.modules
if _absent:  # else someone else in this process has imported it, and it has reported
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # what Python takes for "not to be imported"
try:
    import openvino
    from openvino import Input, Node, Output, PartialShape, opset13
    from openvino._offline_transformations import compress_quantize_weights_transformation
    from openvino.frontend import FrontEndManager
    from openvino.passes import ConstantFolding, Manager
finally:
    if _absent:  # a program that uses this package may want the converter, and asks for it itself
        del sys.modules[_CONVERTER]

__all__ = [
    "ConstantFolding",
    "FrontEndManager",
    "Input",
    "Manager",
    "Node",
    "Output",
    "PartialShape",
    "compress_quantize_weights_transformation",
    "openvino",
    "opset13",
]
