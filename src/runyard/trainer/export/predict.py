"""Prediction with a trained model: an image and a question in, an answer out.

Loads downloaded checkpoints (``model_full`` and, if there, ``model_adapter``) with plain
transformers and formats prompts as in training: the checkpoint's own system prompt, the image, the
question. Used by ``runyard.predict``, by ``runyard models predict`` and by the demo.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runyard.rundir import MODEL_FULL, RUN, CheckpointDir, read_json
from runyard.trainer.answers import VQA, Answer

BATCH_SIZE = 64


class Predictor:
    """A loaded model. ``model_dir`` is a checkpoint's tree, or its ``model_full``.

    Raises:
        runyard.trainer.errors.InvalidFlow: the folder is not a model folder, or is not allowed.
    """

    def __init__(self, model_dir: Path, *, threads: int | None = None):
        import torch

        from runyard.trainer.answer_forms import make_form
        from runyard.trainer.data.encode import Encoder
        from runyard.trainer.devices import find_device
        from runyard.trainer.models.model import load_model

        silence_libraries()
        if threads is not None:
            torch.set_num_threads(threads)
        root = model_dir.parent if model_dir.name == MODEL_FULL else model_dir
        full = CheckpointDir(root).model
        self._device = find_device()
        settings = read_block_settings(read_json(full / RUN) or {})
        self.task: str = settings.get("dataset", {}).get("projectKind", VQA)
        loaded = load_model(root if CheckpointDir(root).has_adapter else full, dtype=torch.float32)
        self._module = loaded.module.to(self._device).eval()
        self._processor = loaded.processor
        self._form = make_form(read_answer_form(settings), loaded.model_type, loaded.processor)
        self._encoder = Encoder(
            loaded.processor,
            loaded.parts,
            system_prompt=settings.get("system-prompt", {}).get("systemPrompt", ""),
            task=self.task,
            renderer=loaded.renderer,
            form=self._form,
        )

    def predict(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> Answer:
        """Return the answer to one question about one image (a PIL image).

        Boxes refer to the image as displayed: one that comes directly from a file is oriented as
        its metadata says.
        """
        return self.predict_all([(image, question)], max_new_tokens=max_new_tokens)[0]

    def predict_all(
        self, questions: Sequence[tuple[Any, str]], *, max_new_tokens: int | None = None
    ) -> list[Answer]:
        """Return the answers to pairs of image and question, in their order.

        Prompts of similar length form batches.
        """
        import torch

        from runyard.datasets.pixels import convert_image
        from runyard.trainer.data.encode import InMemoryEncodings, Layout
        from runyard.trainer.evaluation.evaluation import generate_answers
        from runyard.trainer.models.model import get_pad_id

        layout = Layout(pad_id=get_pad_id(self._processor.tokenizer))
        encoded = [
            self._encoder.encode_question(convert_image(image), text) for image, text in questions
        ]
        data = InMemoryEncodings(encoded, layout)
        generation = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        with torch.inference_mode():
            texts = generate_answers(
                self._module,
                self._processor.tokenizer,
                data,
                len(data),
                generation=generation,
                device=self._device,
                decode=self._form.decode,
            )
        return [
            self._form.read(self.task, text, self._form.read_size(item.images))
            for text, item in zip(texts, encoded, strict=True)
        ]


def silence_libraries() -> None:
    """Disable the libraries' network access, progress bars, and log messages below errors."""
    import transformers

    from runyard.trainer.environment import stay_offline

    stay_offline()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def read_answer_form(settings: dict[str, dict[str, Any]]) -> Any:
    """Return the form of answers in a model's settings; older models name none, and write JSON."""
    return (settings.get("model", {}).get("answers") or {}).get("form", "json")


def read_block_settings(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings in ``run.json`` by the word that block names contain."""
    try:
        blocks = run["spec"]["flow"]["blocks"]
        return {
            word: block["settings"]
            for word in ("system-prompt", "dataset", "model")
            for block in reversed(blocks)
            if word in block["block"]
        }
    except (KeyError, TypeError):
        return {}
