"""Frequent mistakes and their error messages, through the SDK or plain HTTP."""

from typing import Any

import httpx2
import pytest

import vi


@pytest.fixture
def bare(instance: Any) -> Any:
    """HTTP with the right key, for what the SDK refuses to send."""
    headers = {
        "Authorization": f"Bearer {instance.secret_key}",
        "Organization-Id": instance.organization_id,
    }
    with httpx2.Client(base_url=instance.endpoint, headers=headers) as http:
        yield http


def refused(client: vi.Client, flow: Any, **arguments: Any) -> vi.ViError:
    with pytest.raises(vi.ViError) as caught:
        client.runs.create(flow=flow, **arguments)
    return caught.value


def test_an_unknown_block_is_named_with_the_nearest_known_one(client: vi.Client) -> None:
    error = refused(client, {"blocks": [{"block": "vi-modle", "settings": {}}]})
    assert isinstance(error, vi.ViValidationError)
    assert error.status_code == 400
    assert "vi-modle" in error.message
    assert "vi-model" in error.message
    assert "/blocks/0" in error.message


def test_a_wrong_type_is_named_with_path_and_value(client: vi.Client) -> None:
    model = {"block": "vi-model", "settings": {"hyperparameters": {"epochs": "three"}}}
    error = refused(client, {"blocks": [model]})
    assert error.status_code == 400
    assert "/blocks/0/settings/hyperparameters/epochs" in error.message
    assert "three" in error.message


def test_an_out_of_range_hyperparameter_is_named_with_its_range(client: vi.Client) -> None:
    model = {
        "block": "vi-model",
        "settings": {"hyperparameters": {"epochs": 0, "learningRate": -1.0}},
    }
    error = refused(client, {"blocks": [model]})
    assert error.status_code == 400
    assert "/blocks/0/settings/hyperparameters/epochs" in error.message
    assert "10000" in error.message
    assert "/blocks/0/settings/hyperparameters/learningRate" in error.message, (
        "all problems at once"
    )


def test_a_missing_dataset_is_reported_with_the_existing_ones(client: vi.Client) -> None:
    error = refused(
        client, {"blocks": [{"block": "vi-dataset", "settings": {"datasetId": "shelves-2026"}}]}
    )
    assert error.status_code == 400
    assert "shelves-2026" in error.message
    assert "digits" in error.message


def test_an_unknown_flow_is_named(client: vi.Client) -> None:
    error = refused(client, "flow_nowhere")
    assert isinstance(error, vi.ViNotFoundError)
    assert "flow_nowhere" in error.message


def test_an_unknown_training_project_is_named(client: vi.Client) -> None:
    error = refused(client, {}, training_project="project_nowhere")
    assert "project_nowhere" in error.message


@pytest.mark.parametrize("run_id", ["a/b", "../flows", "a?b", "a b", "", "ü", "a" * 256, "a\x00"])
def test_an_id_that_could_be_a_path_is_refused_before_it_is_sent(
    client: vi.Client, run_id: str
) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match="letters, digits"):
        client.runs.get(run_id)


@pytest.mark.parametrize("run_id", ["a%2Fb", "..%2Fflows", "%2e%2e", "a%00", "a%20b", "a" * 256])
def test_an_id_that_could_be_a_path_reaches_no_run_on_the_server(
    bare: Any, instance: Any, run_id: str
) -> None:
    answer = bare.get(f"/workspaces/{instance.organization_id}/runs/{run_id}")
    assert answer.status_code in (400, 404)
    assert answer.json()["message"]


def test_two_mebibytes_of_metadata_are_refused_with_the_limit(client: vi.Client) -> None:
    error = refused(client, {}, metadata={"notes": "x" * (2 * 1024 * 1024)})
    assert error.status_code == 413
    assert "1024 KiB" in error.message


def test_a_body_that_is_not_json_is_refused(bare: Any, instance: Any) -> None:
    url = f"/workspaces/{instance.organization_id}/runs/not-json"
    answer = bare.put(url, content=b"{flow: nonsense", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert "JSON" in answer.json()["message"]
    assert bare.get(url).status_code == 404


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b"3", b'"text"', b"", b'{"spec": []}', b'{"spec": {"flow": 3}}']
)
def test_a_body_of_another_shape_is_refused(bare: Any, instance: Any, body: bytes) -> None:
    url = f"/workspaces/{instance.organization_id}/runs/other-shape"
    answer = bare.put(url, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]
    assert bare.get(url).status_code == 404


def test_a_wrong_key_is_refused_without_revealing_what_exists(instance: Any) -> None:
    wrong = instance.secret_key[:-1] + ("A" if instance.secret_key[-1] != "A" else "B")
    with vi.Client(
        secret_key=wrong, organization_id=instance.organization_id, endpoint=instance.endpoint
    ) as client:
        messages = set()
        for run_id in (instance.trained_run_id, "no-such-run"):
            with pytest.raises(vi.ViAuthenticationError, match="key") as caught:
                client.runs.get(run_id)
            assert caught.value.status_code == 401
            assert wrong not in str(caught.value)
            messages.add(caught.value.message)
        assert len(messages) == 1


def test_an_id_of_another_organization_is_answered_like_an_unknown_one(instance: Any) -> None:
    with (
        vi.Client(
            secret_key=instance.secret_key, organization_id="org-other", endpoint=instance.endpoint
        ) as client,
        pytest.raises(vi.ViNotFoundError) as caught,
    ):
        client.runs.get(instance.trained_run_id)
    assert caught.value.status_code == 404
    assert "org-other" in caught.value.message


def test_a_forged_page_token_is_refused(client: vi.Client) -> None:
    with pytest.raises(vi.ViValidationError, match="page token") as caught:
        client.runs.list(pagination={"page_size": 2, "page_token": "bWFkZSB1cA"})
    assert caught.value.status_code == 400


@pytest.mark.parametrize("page_size", [0, -1, 1001])
def test_a_page_size_out_of_range_is_refused_before_it_is_sent(
    client: vi.Client, page_size: int
) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match="1000"):
        client.runs.list(pagination={"page_size": page_size})
