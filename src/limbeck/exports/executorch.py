"""ExecuTorch with XNNPACK, for Android, iOS and small boards."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor

from limbeck.exports.base import Exporter, Runner, check_quantised
from limbeck.exports.graph import Graph


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is written to stderr, such as the runtime's log on the processor, unless an error follows it."""
    kept = os.dup(2)
    with TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(kept, written.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@quiet()
def export(graph: Graph, path: Path) -> dict[str, int]:
    """Write a ``.pte``. int8: PT2E quantisation by channel with XNNPACK's quantiser."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.dialects.edge._ops import EdgeOpOverload

    program = with_windows(graph.program())
    if graph.precision == "int8":
        program = torch.export.export(_quantised(program, graph), (graph.example[:1],))
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={"limbeck": graph.card}
    )
    targets = [node.target for node in lowered.exported_program().graph.nodes]
    path.write_bytes(lowered.to_executorch().buffer)
    return dict(Counter(one.__name__.split(".")[1] for one in targets if isinstance(one, EdgeOpOverload)))


@quiet()
def load(path: Path, output: int = 0) -> Runner:
    """Open a file with the runtime."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(inputs: Tensor) -> Tensor:
        found: Tensor = method.execute([inputs.contiguous()])[output]
        return found.clone()

    return run


@quiet()
def metadata(path: Path) -> str:
    """What a file says about itself."""
    from executorch.runtime import Runtime

    found: str = Runtime.get().load_program(path).load_method("limbeck").execute([])[0]
    return found


def with_windows(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace adaptive max pooling, which some backends do not have, by max pooling if all windows have one size."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.adaptive_max_pool2d.default:
            maps, (height, width) = node.args
            *_, rows, columns = maps.meta["val"].shape
            if rows % height == columns % width == 0:
                node.target = torch.ops.aten.max_pool2d_with_indices.default
                node.args = (maps, (rows // height, columns // width))
    return program


def _quantised(program: torch.export.ExportedProgram, graph: Graph) -> torch.fx.GraphModule:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    for sample in torch.split(graph.calibration, 1):
        prepared(sample)
    converted: torch.fx.GraphModule = convert_pt2e(prepared)
    check_quantised(any("quantize_per" in str(node.target) for node in converted.graph.nodes))
    return converted


EXECUTORCH = Exporter(
    ".pte",
    ("executorch", "torchao"),
    "executorch",
    export,
    load,
    ("fp32", "fp16", "int8"),
    False,
    metadata,
    ("executorch",),
    runtime=partial(import_module, "executorch.runtime"),
)
