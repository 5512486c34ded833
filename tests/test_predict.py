"""``runyard.predict``: loading a model folder, predictions, and boxes in pixels."""

import subprocess
import sys
from pathlib import Path

import runyard.predict
from runyard.predict import Box, Prediction
from runyard.trainer.answers import Answer, Grounding
from runyard.trainer.models.model import build_tiny


def test_a_model_folder_is_loaded_and_answers(tmp_path: Path) -> None:
    from PIL import Image

    model = build_tiny(task="vqa", phrases=(), samples=None, seed=7)
    model.module.save_pretrained(tmp_path / "model_full")
    model.processor.save_pretrained(tmp_path / "model_full")
    loaded = runyard.predict.load(tmp_path)
    prediction = loaded.predict(
        Image.new("RGB", (64, 32)), "Which digit is this?", max_new_tokens=4
    )
    assert isinstance(prediction, Prediction)
    assert prediction.boxes == ()  # a model without training does not write boxes


def test_a_photo_from_a_file_is_predicted_as_displayed(tmp_path: Path) -> None:
    from PIL import Image

    class Recorder:
        def predict(self, image: Image.Image, question: str, **options: object) -> Answer:
            self.size = image.size
            return Answer("a dog", (Grounding("a dog", ((0, 0, 1024, 512),)),), raw="{}")

    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "photo.jpg", exif=exif)
    recorder = Recorder()
    with Image.open(tmp_path / "photo.jpg") as photo:
        prediction = runyard.predict.TrainedModel(recorder).predict(photo, "?")  # type: ignore[arg-type]
    assert recorder.size == (32, 64)
    assert prediction.boxes == (Box("a dog", 0, 0, 32, 32),)


def test_boxes_are_pixels_of_the_image() -> None:
    answer = Answer("a dog", (Grounding("a dog", ((0, 256, 512, 1024),)),), raw="{}")
    found = runyard.predict._to_prediction(answer, width=64, height=32)
    assert found == Prediction("a dog", (Box("a dog", 0, 8, 32, 32),), "{}")


def test_importing_it_does_not_import_torch() -> None:
    code = (
        "import sys, runyard.predict; sys.exit('torch' in sys.modules or 'transformers' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_examples_use_only_the_public_api() -> None:
    examples = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
    assert examples
    assert [path.name for path in examples if "runyard.trainer" in path.read_text()] == []
