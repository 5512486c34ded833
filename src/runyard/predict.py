"""Predict with a trained model in user programs: image and question in, answer and boxes out.

    model = runyard.predict.load("models/7f3a/epoch-3")
    prediction = model.predict(Image.open("shelf.png"), "What is here?")
    print(prediction.answer, prediction.boxes)

Needs the extra ``train`` (``pip install 'runyard[train]'``); its libraries are imported by
``load``, not before. The model runs on this machine, on the GPU if there is one, and uses no
network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from runyard.trainer.answers import Answer
    from runyard.trainer.export.predict import Predictor

__all__ = ["Box", "Prediction", "TrainedModel", "load"]


@dataclass(frozen=True)
class Box:
    """The box of a phrase, in pixels of the image as displayed."""

    phrase: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Prediction:
    """The answer's text, its boxes if any, and the generated text unchanged (``raw``)."""

    answer: str
    boxes: tuple[Box, ...]
    raw: str


class TrainedModel:
    """A loaded model; ``load`` returns one."""

    def __init__(self, predictor: "Predictor"):
        self._predictor = predictor

    def predict(
        self, image: "Image", question: str, *, max_new_tokens: int | None = None
    ) -> Prediction:
        """Return the model's answer to a question about an image (PIL).

        An image that comes directly from ``Image.open`` is oriented as its metadata says, as in
        training; ``ImageOps.exif_transpose`` gives the image that the boxes refer to.
        """
        from runyard.datasets.pixels import convert_image

        shown = convert_image(image)
        answer = self._predictor.predict(shown, question, max_new_tokens=max_new_tokens)
        return _to_prediction(answer, width=shown.width, height=shown.height)


def load(folder: str | Path) -> TrainedModel:
    """Load a downloaded checkpoint: a folder with ``model_full``, or that folder itself.

    Raises:
        runyard.trainer.errors.InvalidFlow: the folder is not a model folder, or is not allowed.
    """
    from runyard.trainer.export.predict import Predictor

    return TrainedModel(Predictor(Path(folder)))


def _to_prediction(answer: "Answer", *, width: int, height: int) -> Prediction:
    from runyard.trainer.answers import BOX_SCALE

    x, y = width / BOX_SCALE, height / BOX_SCALE
    boxes = (
        Box(item.phrase, left * x, top * y, right * x, bottom * y)
        for item in answer.groundings
        for left, top, right, bottom in item.boxes
    )
    return Prediction(answer.text, tuple(boxes), answer.raw)
