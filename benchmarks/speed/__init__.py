"""What a step costs: limbeck's loop beside loops as people write them, another toolkit's, and the work itself.

`benchmarks.speed.benchmark.run_bench` is the way in. Nothing is imported here: the process that measures a plain loop's
memory must not hold more of limbeck than that loop needs.
"""
