"""The tasks of Transformers pipelines, and replacements for those that Transformers 5 removed."""

from __future__ import annotations

from enum import Enum

from runinference.errors import OptionError, suggest
from runinference.extras import need

transformers = need("transformers", extra="transformers")


class PipelineTask(str, Enum):
    """The tasks of Transformers pipelines, with the names that Beam uses. Pass any other task as a string.

    Each member equals its string: ``PipelineTask.TextClassification == "text-classification"``.
    """

    AudioClassification = "audio-classification"
    AutomaticSpeechRecognition = "automatic-speech-recognition"
    Conversational = "conversational"
    DepthEstimation = "depth-estimation"
    DocumentQuestionAnswering = "document-question-answering"
    FeatureExtraction = "feature-extraction"
    FillMask = "fill-mask"
    ImageClassification = "image-classification"
    ImageSegmentation = "image-segmentation"
    ImageToText = "image-to-text"
    MaskGeneration = "mask-generation"
    NER = "ner"
    ObjectDetection = "object-detection"
    QuestionAnswering = "question-answering"
    SentimentAnalysis = "sentiment-analysis"
    Summarization = "summarization"
    TableQuestionAnswering = "table-question-answering"
    TextClassification = "text-classification"
    TextGeneration = "text-generation"
    Text2TextGeneration = "text2text-generation"
    TextToAudio = "text-to-audio"
    TokenClassification = "token-classification"
    Translation = "translation"
    VideoClassification = "video-classification"
    VisualQuestionAnswering = "visual-question-answering"
    VQA = "vqa"
    ZeroShotAudioClassification = "zero-shot-audio-classification"
    ZeroShotClassification = "zero-shot-classification"
    ZeroShotImageClassification = "zero-shot-image-classification"
    ZeroShotObjectDetection = "zero-shot-object-detection"
    Translation_XX_to_YY = "translation_XX_to_YY"


def check_task(task: str) -> None:
    """Raise `OptionError` if the installed version of Transformers has no pipeline for a task."""
    known: list[str] = transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks()
    family = "translation" if task.startswith("translation_") else task
    if not task or task in known or family in known:
        return
    if family in _REMOVED_TASKS:
        hint = f"Transformers 5 removed it. To fix this, install transformers<5, or {_REMOVED_TASKS[family]}."
    else:
        hint = f"{suggest(task, known).strip()} Known tasks are: {', '.join(known)}."
    raise OptionError(
        f"Transformers {transformers.__version__} has no pipeline for the task {task!r}. {hint}"
    )


_SEQ2SEQ = "run the model itself: HuggingFaceModelHandlerText(model_uri, AutoModelForSeq2SeqLM, method='generate')"
_IMAGE_TEXT = "use the task image-text-to-text"
#: The tasks that Transformers 5 removed, and what to use instead.
_REMOVED_TASKS = {
    "translation": _SEQ2SEQ,
    "summarization": _SEQ2SEQ,
    "text2text-generation": _SEQ2SEQ,
    "question-answering": (
        "run the model itself on pairs of question and context: "
        "HuggingFaceModelHandlerText(model_uri, AutoModelForQuestionAnswering)"
    ),
    "image-to-text": _IMAGE_TEXT,
    "visual-question-answering": _IMAGE_TEXT,
    "vqa": _IMAGE_TEXT,
    "conversational": "use the task text-generation, whose elements may be lists of messages",
}
