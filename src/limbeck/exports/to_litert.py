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
    from ai_edge_quantizer import calibrator, quantizer, recipe_manager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    source, path = sys.argv[1:3]
    program = torch.export.load(source)
    litert_torch.convert(program.module(), program.example_inputs[0]).export(path)
    if len(sys.argv) > 3:
        samples = [{"args_0": sample[None]} for sample in np.load(sys.argv[3])]
        bits = recipe_manager.RecipeManager()
        bits.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
        for kind in ("INPUT", "OUTPUT"):
            bits.add_quantization_config(".*", kind, algorithm_key="no_quantize")
        bits.add_quantization_config(".*serving_default_output_1.*", "SOFTMAX", algorithm_key="no_quantize")
        ranges = calibrator.Calibrator(path, num_threads=1, qsv_update_func=min_max_update)
        ranges.calibrate({"serving_default": samples}, bits)
        quantised = quantizer.Quantizer(path, bits.get_quantization_recipe())
        quantised.quantize(ranges.get_model_qsvs(), enable_progress_report=False).export_model(path, overwrite=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # limbeck shows one line of what litert-torch raises, which may be anything
        sys.exit(next(iter(str(error).strip().splitlines()), type(error).__name__))
