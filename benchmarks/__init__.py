"""Scripts that measure limbeck. They are run from the repository's root and are not part of the wheel."""
