"""The checks of a flow that names several datasets."""

from runyard.flows.blocks import BUILT_IN_DATASETS, DatasetSettings
from runyard.flows.problems import ProblemCollector
from runyard.flows.resolved_flow import ResolvedFlow


def check_mixture(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    """Check that the datasets of a flow are different uploaded ones, and all or none weighted.

    ``at`` is the path of the settings of the dataset block.
    """
    dataset = flow.dataset
    _check_weights(dataset, at, problems)
    named = {f"{at}/mixture/{i}": each.dataset_id for i, each in enumerate(dataset.mixture)}
    if dataset.validation_dataset is not None:
        named[f"{at}/validationDataset"] = dataset.validation_dataset.dataset_id
    if not named:
        return
    # A training project may stand for an uploaded dataset, which only the server can look up.
    if flow.training_project is None:
        named = {at: dataset.dataset_id} | named
    seen = set[str]()
    for path, dataset_id in named.items():
        if dataset_id in BUILT_IN_DATASETS:
            problems.add(
                f"{path}/datasetId",
                dataset_id,
                "an uploaded dataset",
                message=f"{path}/datasetId is {dataset_id}, which is built in; mixtures and "
                "validation datasets are made of uploaded datasets.",
            )
        elif dataset_id in seen or (path != at and dataset_id == dataset.dataset_id):
            problems.add(
                f"{path}/datasetId",
                dataset_id,
                "a dataset that the flow names only here",
                message=f"{path}/datasetId is {dataset_id}, which the flow already names; each "
                "dataset may occur once.",
            )
        seen.add(dataset_id)


def _check_weights(dataset: DatasetSettings, at: str, problems: ProblemCollector) -> None:
    if not dataset.mixture:
        if dataset.weight is not None:
            problems.add(
                f"{at}/weight",
                dataset.weight,
                "null without a mixture",
                message=f"{at}/weight is {dataset.weight:g}, but mixture names no other "
                "dataset; name some there, or leave weight out.",
            )
        return
    weights = {at: dataset.weight}
    weights |= {f"{at}/mixture/{i}": each.weight for i, each in enumerate(dataset.mixture)}
    missing = [path for path, weight in weights.items() if weight is None]
    if missing and len(missing) < len(weights):
        problems.add(
            f"{missing[0]}/weight",
            None,
            "a number above 0, since other datasets have a weight",
            message=f"{missing[0]}/weight is missing, but other datasets of the mixture have a "
            "weight; give each of them one, or none.",
        )
