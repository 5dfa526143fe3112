"""Entry point of ``python -m benchmarks.tasks``."""

from benchmarks.tasks.command import main

if __name__ == "__main__":  # the processes that it starts import this file as well
    main()
