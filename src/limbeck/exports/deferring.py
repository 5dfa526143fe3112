"""The threshold below which a device should ask the teacher, and what the pair then reaches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.evaluate.deferral import Answers, Joint, for_accuracy, for_share
from limbeck.experiment.measuring import outputs_of
from limbeck.exports.errors import in_one_line
from limbeck.exports.samples import RawSamples
from limbeck.tasks import task_of
from limbeck.train.engine import Engine


@dataclass(frozen=True)
class Deferring:
    """The confidence at or below which the teacher should be asked: the greatest value of the softmax of the logits.

    The temperature of the probabilities that a file returns does not change it.
    """

    threshold: float  #: chosen on the validation split
    validation: Joint  #: what student and teacher reach together
    test: Joint | None  #: with the answers of the file; None if this machine cannot run it


@dataclass(frozen=True)
class Deferral:
    """A teacher, and what it and the student must reach together on the validation split: an accuracy or a share.

    The teacher reads normalised batches of the data, and runs on the device that it is on.
    """

    teacher: nn.Module
    accuracy: float | None = None  #: in [0, 1], with the greatest share
    share: float | None = None  #: in [0, 1], the least share of the inputs that the student answers

    def __post_init__(self) -> None:
        given = [one for one in (self.accuracy, self.share) if one is not None]
        if len(given) != 1 or not 0 <= given[0] <= 1:
            raise LimbeckError(
                f"a deferral has an accuracy or a share, in [0, 1]: got accuracy {self.accuracy} and share {self.share}"
            )

    def chosen(self, student: Tensor, raw: RawSamples) -> Deferring:
        """Choose the threshold; ``student`` are its logits (N, K) on the validation split.

        Raises:
            LimbeckError: the task is not classification, there is no validation split, or no threshold fits.
        """
        data = raw.data
        if data.task != "classification" or not len(data.validation):
            raise LimbeckError("a deferral needs a classification task and a validation split")
        answers = self._answers(student, raw, "validation")
        share, accuracy = self.share or 0.0, self.accuracy
        threshold = for_share(answers, share) if accuracy is None else for_accuracy(answers, accuracy)
        return Deferring(threshold, _at(answers, threshold), None)

    def on_test(self, chosen: Deferring, file: Tensor, raw: RawSamples) -> Deferring:
        """The same with what the pair reaches on the test split; ``file`` are the logits (N, K) of the file."""
        return replace(chosen, test=_at(self._answers(file, raw, "test"), chosen.threshold))

    def _answers(self, student: Tensor, raw: RawSamples, which: str) -> Answers:
        split, data = getattr(raw.data, which), raw.data
        device = next((parameter.device for parameter in self.teacher.parameters()), torch.device("cpu"))
        with in_one_line("the teacher fails on a batch of the data"):
            teacher = outputs_of(self.teacher, split, data, Engine(device, "32", "always"), name="teacher")
        task_of(data).check_output("teacher", tuple(teacher.shape[1:]), data)
        if not torch.isfinite(teacher).all():
            raise LimbeckError(f"the teacher's outputs on the {which} split are not finite")
        return Answers(student, teacher, split.targets)


def _at(answers: Answers, threshold: float) -> Joint:
    (found,) = answers.joints(torch.tensor([threshold], dtype=torch.float64))
    return found
