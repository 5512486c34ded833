"""The JSON of any value reads back as the same value, or nothing is sent."""

import datetime
import decimal
import fractions
import json
import math
import types
import uuid
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vi
from vi._http import Http
from vi._http.encoding import MAX_DEPTH, encode_body
from vi.api.resources.flows.responses import FlowBlock, FlowSpec
from vi.api.responses import ConditionKind

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        [2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, -0.0, 5e-324, 1e308, "\ud800", "\U0001f600"]
    )
)
strange = st.sampled_from(
    [
        *(
            decimal.Decimal("0.1"),
            fractions.Fraction(1, 3),
            b"bytes",
            bytearray(b"x"),
            {1, 2},
            frozenset(),
            3 + 4j,
        ),
        *(
            datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
            datetime.date(2026, 1, 2),
            uuid.UUID(int=1),
            object(),
            range(3),
            ...,
        ),
        *(
            numpy.float64(math.nan),
            numpy.float32("inf"),
            numpy.array([1.5]),
            numpy.datetime64("2026-01-01"),
        ),
        *(numpy.longdouble(1) / 3, numpy.complex64(1), iter([1])),
    ]
)
keys = st.text() | st.integers() | st.none() | st.booleans() | st.floats()
anything = st.recursive(
    scalars | strange,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


def exact(value: Any) -> Any:
    """Return a form of a value that distinguishes 1, 1.0 and True, and lists from tuples."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return (
        (type(value), math.copysign(1, value), value)
        if isinstance(value, float)
        else (type(value), value)
    )


@given(anything)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_round_trips_or_is_refused(value: Any) -> None:
    try:
        encoded = encode_body(value)
    except vi.ViInvalidParameterError as error:
        (problem,) = error.details["problems"]
        assert problem["message"] == error.message
        str(error).encode()  # the message can be printed
        assert not is_plain(value), f"{value!r} is JSON and was refused: {error}"
    else:
        assert exact(json.loads(encoded)) == exact(msgspec.json.decode(encoded)) == exact(value)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(key) for key in value) and all(
            map(is_plain, value.values())
        )
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) is str:
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or type(value) is bool or (type(value) is float and math.isfinite(value))


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (numpy.float64(0.1), 0.1),
        (numpy.float32(0.1), float(numpy.float32(0.1))),
        (numpy.float16(0.5), 0.5),
        (numpy.int64(2**62), 2**62),
        (numpy.uint8(7), 7),
        (numpy.bool_(True), True),
        (numpy.str_("a"), "a"),
        (numpy.array(3), 3),
        (ConditionKind.FAILED, "Failed"),
        (types.MappingProxyType({"a": (1, 2)}), {"a": [1, 2]}),
        (FlowBlock(block="b"), {"block": "b", "settings": {}, "style": {}}),
    ],
)
def test_equivalents_of_plain_values_are_sent_as_those(given: Any, sent: Any) -> None:
    assert exact(msgspec.json.decode(encode_body({"x": given}))) == exact({"x": sent})


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 10**30, decimal.Decimal("0.1"), "\udc80", b"x"]
)
def test_a_refusal_names_the_path_and_sends_nothing(bad: Any, server: Any) -> None:
    http = Http("http://server.test:1", transport=server.transport)
    with pytest.raises(vi.ViInvalidParameterError) as raised:
        http.call("PUT", "/x", body={"spec": {"blocks": [{}, {"a/b": {"learning~rate": bad}}]}})
    (problem,) = raised.value.details["problems"]
    assert problem["path"] == "/spec/blocks/1/a~1b/learning~0rate"
    assert raised.value.message.startswith(problem["path"])
    assert server.requests == []


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(vi.ViInvalidParameterError, match=f"at most {MAX_DEPTH} levels"):
        encode_body(loop)


@pytest.mark.parametrize("field", ["learningRate", "maxGradNorm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, numpy.float32("nan")])
@pytest.mark.parametrize("as_struct", [False, True])
def test_a_flow_with_nan_or_infinity_is_not_sent(
    field: str, bad: float, as_struct: bool, server: Any, key: str
) -> None:
    client = vi.Client(key, "lab", endpoint="http://server.test:1", transport=server.transport)
    settings = {"hyperparameters": {field: bad}}
    flow: Any = {"blocks": [{"block": "vi-model", "settings": settings}]}
    if as_struct:
        flow = FlowSpec(blocks=[FlowBlock(block="vi-model", settings=settings)])
    calls = (
        lambda: client.runs.create(flow=flow),
        lambda: client.flows.create(flow),
        lambda: client.flows.update("f1", flow),
    )
    for call in calls:
        with pytest.raises(
            vi.ViInvalidParameterError, match=f"/blocks/0/settings/hyperparameters/{field} is"
        ):
            call()
    assert server.requests == []
