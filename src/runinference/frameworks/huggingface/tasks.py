"""Which tasks have a pipeline; and what stands in for those that Transformers 5 has no more."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from runinference.errors import OptionError, suggest
from runinference.extras import need

transformers = need("transformers", extra="transformers")


class PipelineTask(str, Enum):
    """The tasks of pipelines, by the names of Beam; any other task can be given as a string.

    A task is its string: ``PipelineTask.TextClassification`` is ``"text-classification"``, and
    ``PipelineTask("fill-mask")`` is ``PipelineTask.FillMask``. ``list(PipelineTask)`` has them all.
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


def refuse_unknown(task: str) -> None:
    """Does nothing for a task of the installed version, or for none.

    Raises:
        OptionError: There is no such task; or it left with Transformers 5, and this helps instead.
    """
    if not task:
        return
    registry: Callable[[], list[str]] = transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks
    known = [*registry(), "translation"] if "translation" in registry() else registry()
    if task in known or (task.startswith("translation_") and "translation" in known):
        return
    version = transformers.__version__
    if task in _LEFT or task.startswith("translation_"):
        cure = f"It left with Transformers 5: install transformers<5, or {_LEFT.get(task, _TRANSLATE)}."
    else:
        cure = f"{suggest(task, known).strip()} Known are: {', '.join(known)}."
    raise OptionError(f"Transformers {version} has no pipeline for the task {task!r}. {cure}")


_TRANSLATE = (
    "run the model itself: HuggingFaceModelHandlerText(model_uri, AutoModelForSeq2SeqLM, "
    "method='generate')"
)
_ANSWER = (
    "run the model itself on pairs of question and context: "
    "HuggingFaceModelHandlerText(model_uri, AutoModelForQuestionAnswering)"
)
_LOOK = "take the task image-text-to-text"
#: Tasks that Transformers 4 has and 5 has not, and what to do instead.
_LEFT = {
    "translation": _TRANSLATE,
    "translation_XX_to_YY": _TRANSLATE,
    "summarization": _TRANSLATE,
    "text2text-generation": _TRANSLATE,
    "question-answering": _ANSWER,
    "image-to-text": _LOOK,
    "visual-question-answering": _LOOK,
    "vqa": _LOOK,
    "conversational": "take the task text-generation, whose elements may be lists of messages",
}
