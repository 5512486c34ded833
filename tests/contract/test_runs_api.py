"""The calls that users of ``client.runs`` write, with both clients, against a real instance."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vi
from vi.api.resources.runs.responses import Run, RunSpec, RunStatus
from vi.api.responses import ConditionKind, DeletedResource
from vi.api.types import PaginationParams


@pytest.fixture(scope="module")
def pending(client: vi.Client, long_runs: Any, end_run: Callable[..., None]) -> Iterator[list[str]]:
    """Four runs that wait, oldest first."""
    long_runs.running()
    ids = [
        client.runs.create(flow={"name": f"Waiting {n}"}, metadata={"n": str(n)}).run_id
        for n in range(4)
    ]
    yield ids
    for run_id in ids:
        end_run(client, run_id)


@pytest.fixture
def flow_id(client: vi.Client) -> str:
    return client.flows.create(spec={"name": "Quick Training"}).flow_id


@pytest.fixture
def project_id(client: vi.Client) -> str:
    return client.training_projects.create(
        spec={"name": "Shelves", "type": "vqa"}
    ).training_project_id


def test_the_list_is_a_page_of_ten_with_the_newest_first(
    client: vi.Client, pending: list[str]
) -> None:
    page = client.runs.list()
    times = [run.metadata.time_created for run in page.items]
    assert times == sorted(times, reverse=True)
    assert len(page.items) <= 10
    assert page.items[0].run_id == pending[-1]


@pytest.mark.parametrize("pagination", [PaginationParams(page_size=2), {"page_size": 2}])
def test_pages_have_the_requested_length_and_name_each_run_once(
    client: vi.Client, pending: list[str], pagination: Any
) -> None:
    pages = list(client.runs.list(pagination=pagination))
    assert [len(page.items) for page in pages[:-1]] == [2] * (len(pages) - 1)
    ids = [run.run_id for page in pages for run in page.items]
    assert len(ids) == len(set(ids))
    assert [run.run_id for run in client.runs.list(pagination=pagination).all_items()] == ids
    assert ids[:4] == pending[::-1]


def test_a_page_token_continues_after_the_page(client: vi.Client, pending: list[str]) -> None:
    first = client.runs.list(pagination=PaginationParams(page_size=3))
    second = client.runs.list(pagination=PaginationParams(page_size=1, page_token=first.next_page))
    assert [run.run_id for run in second.items] == [pending[0]]


def test_filters_find_matching_runs(
    client: vi.Client, pending: list[str], finished_run: Run
) -> None:
    by_attribute = client.runs.list(attribute={"n": "2"})
    assert [run.run_id for run in by_attribute.items] == [pending[2]]
    succeeded = client.runs.list(condition="Succeeded")
    assert {run.condition for run in succeeded.items} == {ConditionKind.SUCCEEDED}
    assert finished_run.run_id in [run.run_id for run in succeeded.all_items()]


def test_a_finished_run_has_its_history(
    client: vi.Client, finished_run: Run, instance: Any
) -> None:
    run = client.runs.get(finished_run.run_id)
    assert isinstance(run, Run)
    assert isinstance(run.spec, RunSpec)
    assert isinstance(run.status, RunStatus)
    assert run.organization_id == instance.organization_id
    assert [condition.condition.value for condition in run.status.conditions] == [
        "Pending",
        "Running",
        "Succeeded",
    ]
    assert run.status.conditions[-1].reason == "Completed"
    assert run.status.conditions[-1].message
    assert run.status.observed_generation == run.metadata.generation
    assert run.spec.killed_at is None


def test_info_prints_the_current_state(
    client: vi.Client, finished_run: Run, pending: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    client.runs.get(finished_run.run_id).info()
    assert "Succeeded" in capsys.readouterr().out
    client.runs.get(pending[0]).info()
    printed = capsys.readouterr().out
    assert pending[0] in printed
    assert "Pending" in printed


def test_a_run_is_created_from_a_flow_id_with_project_and_attributes(
    client: vi.Client, flow_id: str, project_id: str, long_runs: Any, end_run: Callable[..., None]
) -> None:
    long_runs.running()
    run = client.runs.create(
        flow=flow_id, training_project=project_id, metadata={"experiment": "baseline"}
    )
    assert run.spec.flow.name == "Quick Training"
    assert run.spec.training_project == project_id
    assert run.metadata.attributes == {"experiment": "baseline"}
    assert run.condition is ConditionKind.PENDING
    end_run(client, run.run_id)


def test_creating_twice_under_one_id_starts_one_run(
    client: vi.Client, long_runs: Any, end_run: Callable[..., None]
) -> None:
    long_runs.running()
    first = client.runs.create(flow={"name": "Once"}, run_id="once-only")
    again = client.runs.start(flow={"name": "Once"}, run_id="once-only")
    assert again.run_id == first.run_id == "once-only"
    assert again.metadata.time_created == first.metadata.time_created
    with pytest.raises(vi.ViConflictError):
        client.runs.create(flow={"name": "Other"}, run_id="once-only")
    end_run(client, "once-only")


def test_updates_change_only_what_is_given(
    client: vi.Client, pending: list[str], project_id: str
) -> None:
    run = client.runs.update(run_id=pending[1], metadata={"notes": "improved accuracy"})
    assert run.metadata.attributes == {"n": "1", "notes": "improved accuracy"}
    run = client.runs.update(run_id=pending[1], spec={"training_project": project_id})
    assert run.spec.training_project == project_id
    assert run.metadata.attributes == {"n": "1", "notes": "improved accuracy"}


def test_a_killed_run_that_waited_is_cancelled_and_can_be_deleted(
    client: vi.Client, pending: list[str]
) -> None:
    killed = client.runs.kill(run_id=pending[0])
    assert isinstance(killed.spec.killed_at, int)
    assert client.runs.get(pending[0]).condition is ConditionKind.CANCELLED
    deleted = client.runs.delete(run_id=pending[0])
    assert isinstance(deleted, DeletedResource)
    assert deleted.id == pending[0]
    with pytest.raises(vi.ViNotFoundError):
        client.runs.delete(run_id=pending[0])


def test_logs_and_metrics_of_a_finished_run_are_complete(
    client: vi.Client, finished_run: Run
) -> None:
    numbers = [line.number for line in client.runs.logs(finished_run.run_id)]
    assert numbers == list(range(1, len(numbers) + 1))
    steps = [
        point.step for point in client.runs.metrics(finished_run.run_id) if "loss" in point.values
    ]
    assert steps == sorted(set(steps))
    assert finished_run.status.progress is not None
    assert steps[-1] == finished_run.status.progress.total_steps


def test_get_model_downloads_the_newest_checkpoint(
    client: vi.Client, finished_run: Run, tmp_path: Path
) -> None:
    model = client.get_model(finished_run.run_id, save_path=tmp_path, show_progress=False)
    newest = list(client.models.list(finished_run.run_id).all_items())[-1]
    assert model.model_id == newest.model_id
    assert (model.model_path / "config.json").is_file()
    assert model.run_config_path.is_file()


def test_the_asynchronous_client_makes_the_same_calls(
    instance: Any, finished_run: Run, long_runs: Any, tmp_path: Path
) -> None:
    long_runs.running()

    async def calls() -> None:
        arguments = {"secret_key": instance.secret_key, "organization_id": instance.organization_id}
        async with vi.AsyncClient(endpoint=instance.endpoint, **arguments) as client:
            page = await client.runs.list(pagination=PaginationParams(page_size=2))
            assert len(page.items) == 2
            run = await client.runs.create(flow={"name": "Async"})
            assert run.run_id in [
                one.run_id async for one in (await client.runs.list()).all_items()
            ]
            await client.runs.update(run.run_id, metadata={"a": "b"})
            await client.runs.kill(run.run_id)
            with pytest.raises(vi.ViRunFailedError, match="Cancelled"):
                await client.runs.wait(run.run_id, timeout=30)
            assert (await client.runs.delete(run.run_id)).id == run.run_id
            model = await client.get_model(
                finished_run.run_id, save_path=tmp_path, show_progress=False
            )
            assert model.model_path.is_dir()

    asyncio.run(calls())


def test_a_killed_run_that_trained_is_cancelled(client: vi.Client, long_runs: Any) -> None:
    # The last test here: what waited takes the slot now, so that nothing is sure to be pending any
    # more.
    running = long_runs.running()
    client.runs.kill(running.run_id)
    with pytest.raises(vi.ViRunFailedError) as ended:
        client.runs.wait(running.run_id, timeout=30)
    assert ended.value.condition is ConditionKind.CANCELLED
    assert ended.value.reason == "KilledByUser"
