"""Convert a program to LiteRT. Run by `limbeck.exports.litert` with a Python that has litert-torch, without limbeck.

    python to_litert.py PROGRAM FILE [CALIBRATION]

PROGRAM is of `torch.export.save`. With CALIBRATION, an array of samples (N, ...), the file is int8.
"""

import sys


def main() -> None:
    """See the module."""
    import litert_torch
    import numpy as np
    import torch
    from ai_edge_quantizer import quantizer, recipe

    source, path = sys.argv[1:3]
    program = torch.export.load(source)
    litert_torch.convert(program.module(), program.example_inputs[0]).export(path)
    if len(sys.argv) > 3:
        samples = np.load(sys.argv[3])
        quantised = quantizer.Quantizer(path, recipe.static_wi8_ai8())
        quantised.update_quantization_recipe(".*", "OUTPUT", algorithm_key="no_quantize")
        ranges = quantised.calibrate({"serving_default": [{"args_0": one[None]} for one in samples]}, num_threads=1)
        quantised.quantize(ranges, enable_progress_report=False).export_model(path, overwrite=True)


if __name__ == "__main__":
    main()
