import torch

from limbeck import watching


def test_watched_batches_can_be_swept_and_looked_at_without_moving_the_bar():
    class Source:
        samples = 3

        def __len__(self):
            return 2

        def __call__(self, epoch):
            return iter(())

        def sweep(self):
            return ["a", "b"]

        def few(self):
            return torch.ones(2, 4)

    moved = []
    watched = watching._Watched(Source(), moved.append)
    assert (watched.samples, len(watched)) == (3, 2)
    assert list(watched.sweep()) == ["a", "b"]
    assert watched.few().shape == (2, 4)
    assert moved == []
