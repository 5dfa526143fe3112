"""`limbeck doctor`: what this machine has."""

from rich.table import Table

from limbeck.cli.reporting import reporting


def doctor() -> None:
    """Show versions, device, precision and data."""
    with reporting():
        import torch

        from limbeck.cli.terminal import console
        from limbeck.data import data_root
        from limbeck.errors import LimbeckError
        from limbeck.experiment.environment import environment
        from limbeck.train.engine import pick_precision

        found = environment()
        device = torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
        precision, reason = pick_precision(device, "auto")
        try:
            root = data_root(None)
            data = f"{root} ({'exists' if root.is_dir() else 'does not exist'})"
        except LimbeckError as error:
            data = str(error)
        rows = {
            "python": found["python"],
            **found["packages"],
            "platform": found["platform"],
            "cpu": f"{found['cpu']}, {found['cores']} cores",
            "threads": str(found["threads"]),
            "device": f"{device.type} {', '.join(found['gpus'])}".strip(),
            "precision": f"{'bfloat16' if precision == 'bf16' else '32 bits'} ({reason})",
            "data": data,
            "commit": found["commit"] or "unknown",
        }
        table = Table("", "", show_header=False)
        for key, value in rows.items():
            table.add_row(key, value)
        console().print(table)
