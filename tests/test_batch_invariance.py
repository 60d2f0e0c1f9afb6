"""The result of an element is the same alone and in any batch, at any position.

`make fuzz` tries more batches (`HYPOTHESIS_PROFILE=thorough`).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import handler_cases
import neighbor_cases
from runinference.testing.compare import same

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
LOCAL = [
    factory
    for factory in handler_cases.FACTORIES
    if factory not in (*handler_cases.SERVER_FACTORIES, handler_cases.keyed, handler_cases.remote)
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(factory, marks=pytest.mark.xdist_group("tensorflow"), id=factory.__name__)
        if factory in handler_cases.TENSORFLOW_FACTORIES
        else pytest.param(factory, id=factory.__name__)
        for factory in (*LOCAL, *neighbor_cases.FACTORIES)
    ],
)
def case(request: Any, tmp_path_factory: Any) -> Any:
    """A handler whose elements are batches, examples, their arguments, and the result of each alone."""
    made = request.param(tmp_path_factory.mktemp("models"))
    is_case = isinstance(made, handler_cases.Case)
    handler, examples, args = (made.handler, made.examples, None) if is_case else made
    handler = handler.with_no_batching()
    return handler, examples, args, handler.predict([[x] for x in examples], args)


@given(data=st.data())
@settings(
    max_examples=200 if THOROUGH else 6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
def test_the_result_of_an_element_is_the_same_alone_and_in_any_batch(case, data):
    handler, examples, args, alone = case
    index = st.integers(0, len(examples) - 1)
    batch = st.lists(index, min_size=1, max_size=6)
    batches = data.draw(st.lists(batch, min_size=1, max_size=2))
    results = handler.predict([[examples[i] for i in indices] for indices in batches], args)
    for index, result in zip((i for indices in batches for i in indices), results, strict=True):
        assert same(result, alone[index])
