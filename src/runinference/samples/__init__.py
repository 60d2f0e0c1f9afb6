"""Small trained models, and data held out from them, for pages, examples and first tries.

Each model is trained once, on data that scikit-learn ships, and kept as a file in the user's cache
directory. Nothing is downloaded.

The first 1,000 of scikit-learn's 1,797 handwritten digits, and the first 300 of its 442 diabetes
patients, train the models; the rest is held out.
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
from runinference.samples.texts import (
    Question,
    blank_filler,
    held_out_blanks,
    held_out_questions,
    held_out_reviews,
    question_answerer,
    review_classifier,
)

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
    "review_classifier",
]
