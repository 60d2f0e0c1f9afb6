"""Small trained models and held-out data, for documentation, examples and experiments.

Each model is made on first use, and kept in the user's cache directory. All but the reranker are trained, on data
that scikit-learn ships or that this package generates. Nothing is downloaded.

The models are trained on the first 1,000 of scikit-learn's 1,797 handwritten digits, and on the first 300 of its
442 diabetes patients. The rest is held out.
"""

from runinference.samples.models import (
    diabetes_regressor,
    digit_tensors,
    digits_classifier,
    digits_forest,
    digits_shufflenet,
    held_out_diabetes,
    held_out_digits,
)
from runinference.samples.reranker import reranker
from runinference.samples.text_data import (
    Question,
    held_out_blanks,
    held_out_questions,
    held_out_reviews,
)
from runinference.samples.text_models import blank_filler, question_answerer, review_classifier

__all__ = [
    "Question",
    "blank_filler",
    "diabetes_regressor",
    "digit_tensors",
    "digits_classifier",
    "digits_forest",
    "digits_shufflenet",
    "held_out_blanks",
    "held_out_diabetes",
    "held_out_digits",
    "held_out_questions",
    "held_out_reviews",
    "question_answerer",
    "reranker",
    "review_classifier",
]
