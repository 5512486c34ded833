"""Our own import sessions: packs in, findings out, and a dataset whose every count is right."""

from collections.abc import Callable
from typing import Any

from tests.server.datasets import Data, shelf


async def data_of(house: Any) -> Data:
    return Data(house, await house.api())


def test_a_folder_becomes_a_dataset_with_a_version(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        data = await data_of(house)
        dataset_id = await data.make()
        begun = await data.begin(dataset_id, source="shelves", files=4)
        assert [c["condition"] for c in begun["status"]["conditions"]] == ["Finished", "Checked", "Received"]
        assert {c["status"] for c in begun["status"]["conditions"]} == {"Waiting"}

        done = await data.bring(dataset_id, shelf(3))
        assert {c["status"] for c in done["status"]["conditions"]} == {"Reached"}, done
        assert done["status"]["findings"] == {"errors": 0, "warnings": 0, "byCode": {}}
        assert (done["status"]["progress"]["images"], done["status"]["progress"]["rowsKept"]) == (3, 3)
        told = await data.get(dataset_id)
        assert (told["statistic"]["assetTotal"], told["statistic"]["annotationTotal"]) == (3, 3)
        assert told["statistic"]["assetAnnotated"] == 3
        assert told["version"] == done["status"]["version"] is not None
        versions = (await data.get(dataset_id, "versions"))["items"]
        assert [(v["datasetVersionId"], v["number"], v["assets"], v["records"]) for v in versions] == [
            (told["version"], 1, 3, 3)
        ]

    in_house(story)
