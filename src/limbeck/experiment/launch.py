"""How torchrun starts a command in several processes. Torch is not imported."""


def torchrun(command: str, processes: int, here: int) -> str:
    """What starts a command in so many processes, of which ``here`` run on this machine; the command itself for one."""
    if processes == 1:
        return command
    if here != processes:
        return f"start torchrun again on each machine, with -m {command}"
    return f"torchrun --nproc-per-node {here} -m {command}"
