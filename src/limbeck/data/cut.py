"""How samples are divided into batches."""


def batch_sizes(count: int, most: int) -> list[int]:
    """The sizes of the batches of ``count`` samples: ``most`` each, and the rest in a last batch.

    If the rest is a single sample, the last two batches share evenly, because some networks cannot take a batch of one:
    501 samples in batches of 500 are 251 and 250. In batches of two, the last sample of an odd number stays alone.
    """
    whole, rest = divmod(count, most)
    if rest == 1 and whole:
        return [most] * (whole - 1) + [(most + 2) // 2, (most + 1) // 2]
    return [most] * whole + [rest] * (rest > 0)
