"""Tasks of pipelines that do not exist, or that Transformers 5 removed."""

from __future__ import annotations

import pytest
import transformers

from runinference.errors import OptionError
from runinference.huggingface_inference import HuggingFacePipelineModelHandler, PipelineTask


def test_suggests_a_name_for_an_unknown_task(classifier):
    with pytest.raises(OptionError, match="Did you mean 'text-classification'"):
        HuggingFacePipelineModelHandler("text-clasification", classifier).load_model()


@pytest.mark.skipif(transformers.__version__ < "5", reason="Transformers 4 has these tasks")
@pytest.mark.parametrize(
    ("task", "hint"),
    [
        (PipelineTask.QuestionAnswering, "AutoModelForQuestionAnswering"),
        (PipelineTask.Summarization, "AutoModelForSeq2SeqLM"),
        ("translation_en_to_de", "AutoModelForSeq2SeqLM"),
    ],
)
def test_suggests_a_replacement_for_a_removed_task(task, hint, classifier):
    with pytest.raises(OptionError, match=f"transformers<5, or .*{hint}"):
        HuggingFacePipelineModelHandler(task, classifier).load_model()
