"""THE page that lists every route: method, path, function, what it takes and gives.

The application, the OpenAPI document and the tests of the door are all made from ``ROUTES``; a route that is not here
does not exist. Beside these stand ``/downloads/{link}`` (``downloads``) and ``/uploads/{link}`` (``uploads``), which
sign for themselves.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from runyard import protocol
from runyard.server.http import (
    annotations,
    assets,
    attempts,
    backups,
    bodies,
    datasets,
    flows,
    health,
    imports,
    models,
    runs,
    storage,
    training_projects,
)
from runyard.server.services.backups import Restored, StoreContents
from runyard.server.services.lines import LogPage, MetricPage
from runyard.server.services.storage import StorageReport
from vi.api.resources.annotations.responses import Annotation, AnnotationImportSession, FileUploads
from vi.api.resources.assets.responses import (
    Asset,
    AssetCount,
    AssetIngestionSession,
    MultipartUpload,
    PartUpload,
)
from vi.api.resources.datasets.responses import (
    BulkDeletion,
    Dataset,
    DatasetExport,
    DatasetImport,
    DatasetVersion,
    DeletedDataset,
    Finding,
    ImportReport,
)
from vi.api.resources.flows.responses import Flow, FlowAcceleratorList
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run
from vi.api.resources.training_projects.responses import TrainingProject

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True)
class Route:
    """One route. ``takes`` is the struct of its body; ``gives`` of its answer, None for an empty one, ``bytes`` for a
    file. ``is_operators`` says that only admins of the organisation the instance began with may use it."""

    method: Method
    path: str
    answer: Callable[..., Awaitable[Any]]
    summary: str
    takes: Any = None
    gives: Any = None
    is_page: bool = False
    is_operators: bool = False
    query: tuple[str, ...] = ()


PAGE = ("s", "p")
FILTERS = ("condition", "flow", "trainingProject", "attribute", "createdAfter", "createdBefore")
ORG = "/workspaces/{org:str}"
RUN = ORG + "/runs/{run_id:str}"
FLOW = ORG + "/flows/{flow_id:str}"
PROJECT = ORG + "/trainingProjects/{project_id:str}"
DATASET = ORG + "/datasets/{dataset:str}"
ASSET = DATASET + "/assets/{asset_id:str}"
ANNOTATION = ASSET + "/annotations/{annotation_id:str}"
SOURCE = DATASET + "/assetSources/managed/datature/default"
MULTIPART = SOURCE + "/multipartUploads/{upload_id:str}"
SESSION = DATASET + "/annotationImportSessions/{session_id:str}"
IMPORT = DATASET + "/imports/{import_id:str}"
ATTEMPT = "/internal/v1/attempt"

# fmt: off
ROUTES = (
    Route("GET", "/health", health.get_health, "Whether the server is up; no key needed", gives=health.Health),
    Route("GET", "/openapi.json", health.get_openapi, "This document", gives=dict[str, Any]),

    Route("GET", ORG + "/runs", runs.list_runs, "List runs, newest first", gives=Run, is_page=True,
          query=PAGE + FILTERS),
    Route("GET", ORG + "/simpleRuns", runs.list_runs, "List runs, newest first", gives=Run, is_page=True,
          query=PAGE + FILTERS),
    Route("GET", RUN, runs.get_run, "Read a run", gives=Run),
    Route("PUT", RUN, runs.put_run, "Create a run; repeating it is harmless", takes=bodies.NewRun, gives=Run),
    Route("PATCH", RUN, runs.patch_run, "Update or kill a run", takes=bodies.ChangedRun, gives=Run),
    Route("DELETE", RUN, runs.delete_run, "Delete a run and all that belongs to it"),
    Route("GET", RUN + "/logs", runs.get_logs, "Read log lines", gives=LogPage,
          query=("since", "until", "limit", "block", "wait")),
    Route("GET", RUN + "/metrics", runs.get_metrics, "Read metric points", gives=MetricPage,
          query=("since", "limit")),
    Route("GET", RUN + "/outputs", models.list_models, "List a run's models, latest last", gives=Model,
          is_page=True, query=(*PAGE, "contents")),
    Route("GET", RUN + "/outputs/{checkpoint:str}", models.get_model, "Read a model; `latest` and `best` are ids too",
          gives=Model, query=("contents",)),

    Route("GET", ORG + "/flows", flows.list_flows, "List flows, newest first", gives=Flow, is_page=True, query=PAGE),
    Route("GET", ORG + "/simpleFlows", flows.list_flows, "List flows, newest first", gives=Flow, is_page=True,
          query=PAGE),
    Route("GET", FLOW, flows.get_flow, "Read a flow", gives=Flow),
    Route("PUT", FLOW, flows.put_flow, "Create or replace a flow", takes=bodies.NewFlow, gives=Flow),
    Route("PATCH", FLOW, flows.patch_flow, "Update a flow", takes=bodies.ChangedFlow, gives=Flow),
    Route("DELETE", FLOW, flows.delete_flow, "Delete a flow"),
    Route("GET", FLOW + "/accelerators", flows.get_accelerators, "Whether a run fits into the accelerators there are",
          gives=FlowAcceleratorList),
    Route("GET", ORG + "/flowSchemas/{version:str}", flows.get_flow_schema, "JSON Schema of flows",
          gives=dict[str, Any]),

    Route("GET", ORG + "/trainingProjects", training_projects.list_projects, "List training projects, newest first",
          gives=TrainingProject, is_page=True, query=PAGE),
    Route("GET", PROJECT, training_projects.get_project, "Read a training project", gives=TrainingProject),
    Route("PUT", PROJECT, training_projects.put_project, "Create or replace a training project",
          takes=bodies.NewProject, gives=TrainingProject),
    Route("PATCH", PROJECT, training_projects.patch_project, "Update a training project",
          takes=bodies.ChangedProject, gives=TrainingProject),
    Route("DELETE", PROJECT, training_projects.delete_project, "Delete a training project"),

    Route("GET", ORG + "/datasets", datasets.list_datasets, "List datasets, newest first", gives=Dataset, is_page=True,
          query=PAGE),
    Route("GET", ORG + "/simpleDatasets", datasets.list_datasets, "List datasets, newest first", gives=Dataset,
          is_page=True, query=PAGE),
    Route("POST", ORG + "/datasets", datasets.post_dataset, "Create an empty dataset", takes=bodies.NewDataset,
          gives=Dataset),
    Route("GET", DATASET, datasets.get_dataset, "Read a dataset", gives=Dataset),
    Route("PATCH", DATASET, datasets.patch_dataset, "Update a dataset", takes=bodies.ChangedDataset, gives=Dataset),
    Route("DELETE", DATASET, datasets.delete_dataset, "Delete a dataset and all that is in it", gives=DeletedDataset),
    Route("GET", DATASET + "/deleteOperation", datasets.get_deletion, "How a deletion goes", gives=DeletedDataset),
    Route("GET", DATASET + "/collaborators", datasets.list_collaborators, "Who else works at a dataset",
          gives=dict[str, Any], is_page=True, query=PAGE),
    Route("GET", DATASET + "/aggregationStatistics", datasets.get_statistics, "Counts", gives=dict[str, Any]),
    Route("POST", DATASET + "/aggregationStatistics:generate", datasets.get_statistics, "Counts, which are always new",
          gives=dict[str, Any]),
    Route("GET", DATASET + "/versions", datasets.list_versions, "List versions, newest first", gives=DatasetVersion,
          is_page=True, query=PAGE),
    Route("GET", DATASET + "/versions/{version:str}", datasets.get_version, "Read a version", gives=DatasetVersion),
    Route("POST", DATASET + "/imports", imports.post_import, "Begin an import", takes=bodies.NewImport,
          gives=DatasetImport),
    Route("GET", DATASET + "/imports", imports.list_imports, "List imports, newest first", gives=DatasetImport,
          is_page=True, query=PAGE),
    Route("GET", IMPORT, imports.get_import, "Read an import", gives=DatasetImport),
    Route("POST", IMPORT, imports.act_on_import, "`:finish`, everything is sent; `:cancel`, take nothing",
          takes=bodies.FinishedImport, gives=DatasetImport),
    Route("GET", IMPORT + "/findings", imports.list_findings, "List what was found, in the order it was found",
          gives=Finding, is_page=True, query=(*PAGE, "severity", "code")),
    Route("GET", IMPORT + "/report", imports.get_report, "What was found, by code; a page for `Accept: text/html`",
          gives=ImportReport),

    Route("GET", DATASET + "/preview", datasets.get_preview, "Some pictures with what is said of them, as one PNG",
          gives=bytes, query=("count", "seed", "version")),
    Route("POST", DATASET + "/datasetExports", datasets.post_export, "Begin an export", takes=bodies.NewExport,
          gives=DatasetExport),
    Route("GET", DATASET + "/datasetExports", datasets.list_exports, "List exports, newest first",
          gives=DatasetExport, is_page=True, query=PAGE),
    Route("GET", DATASET + "/datasetExports/{export_id:str}", datasets.get_export, "Read an export",
          gives=DatasetExport),

    Route("GET", DATASET + "/assets", assets.list_assets, "List pictures", gives=Asset, is_page=True,
          query=(*PAGE, "sortBy", "o", "filter", "contents")),
    Route("GET", DATASET + "/assets:count", assets.count_assets, "How many pictures there are", gives=AssetCount,
          query=("filter",)),
    Route("GET", ASSET, assets.get_asset, "Read a picture's facts", gives=Asset, query=("contents",)),
    Route("DELETE", ASSET, assets.delete_asset, "Delete a picture and what is said of it"),
    Route("POST", ASSET + "/name", assets.rename_asset, "Rename a picture", takes=bodies.NewName, gives=Asset),
    Route("POST", DATASET + "/assetFiles/{filename:str}/name", assets.rename_file, "Rename a picture by its name",
          takes=bodies.NewName, gives=Asset),
    Route("POST", DATASET + "/deleteManyAssetsSessions", assets.post_bulk_deletion, "Begin to delete many pictures",
          takes=bodies.NewBulkDeletion, gives=BulkDeletion),
    Route("GET", DATASET + "/deleteManyAssetsSessions", assets.list_bulk_deletions, "List such deletions, newest first",
          gives=BulkDeletion, is_page=True, query=PAGE),
    Route("GET", DATASET + "/deleteManyAssetsSessions/{session_id:str}", assets.get_bulk_deletion,
          "How that goes", gives=BulkDeletion),
    Route("POST", SOURCE + "/assetIngestionSessions", assets.post_ingestion, "Announce pictures, one file each",
          takes=bodies.NewIngestion, gives=AssetIngestionSession),
    Route("GET", SOURCE + "/assetIngestionSessions", assets.list_ingestions, "List such sessions, newest first",
          gives=AssetIngestionSession, is_page=True, query=PAGE),
    Route("GET", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.get_ingestion, "Read one",
          gives=AssetIngestionSession),
    Route("POST", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.act_on_ingestion, "`:cancel`",
          gives=AssetIngestionSession),
    Route("POST", SOURCE + "/multipartUploads", assets.post_multipart, "Begin a large file",
          takes=bodies.NewMultipart, gives=MultipartUpload),
    Route("POST", MULTIPART + "/parts/{part:str}", assets.post_part, "Where a part goes", gives=PartUpload),
    Route("POST", MULTIPART + "/parts/{part:str}/completion", assets.post_part_completion, "A part has been sent",
          gives=dict[str, Any]),
    Route("POST", MULTIPART + "/completion", assets.post_multipart_completion, "All parts have been sent",
          gives=MultipartUpload),
    Route("DELETE", MULTIPART, assets.delete_multipart, "Forget the parts"),

    Route("GET", ASSET + "/annotations", annotations.list_annotations, "List what is said of a picture",
          gives=Annotation, is_page=True, query=PAGE),
    Route("GET", ANNOTATION, annotations.get_annotation, "Read an annotation", gives=Annotation),
    Route("PUT", ANNOTATION, annotations.change_annotation, "Change an annotation", takes=dict[str, Any],
          gives=Annotation),
    Route("PATCH", ANNOTATION, annotations.change_annotation, "Change an annotation", takes=dict[str, Any],
          gives=Annotation),
    Route("DELETE", ANNOTATION, annotations.delete_annotation, "Delete an annotation"),
    Route("POST", DATASET + "/annotationImportSessions", annotations.post_session, "Begin to send annotation files",
          takes=bodies.NewAnnotationImport, gives=AnnotationImportSession),
    Route("GET", DATASET + "/annotationImportSessions", annotations.list_sessions, "List such sessions, newest first",
          gives=AnnotationImportSession, is_page=True, query=PAGE),
    Route("GET", SESSION, annotations.get_session, "Read one", gives=AnnotationImportSession),
    Route("POST", SESSION + "/files", annotations.post_files, "Announce files", takes=bodies.NewFiles,
          gives=FileUploads),
    Route("GET", SESSION + "/files", annotations.get_files, "How many files have come", gives=dict[str, Any]),
    Route("GET", SESSION + "/filesSample", annotations.get_files, "How many files have come", gives=dict[str, Any]),
    Route("GET", SESSION + "/logs", annotations.get_logs, "What was found", gives=Finding, is_page=True, query=PAGE),
    Route("PATCH", SESSION + "/status", annotations.patch_status, "All files are sent, or none will be",
          takes=dict[str, Any], gives=AnnotationImportSession),

    Route("GET", ORG + "/storage", storage.get_storage, "Whether database and disk agree", gives=StorageReport),
    Route("POST", ORG + "/storage/collections", storage.post_collection, "Remove bytes and folders nothing needs",
          gives=StorageReport),
    Route("GET", ORG + "/storage/contents", backups.get_contents, "Operator: what a restore would replace",
          gives=StoreContents, is_operators=True, query=("since",)),
    Route("POST", ORG + "/storage/backups", backups.post_backup, "Operator: the whole instance as one file",
          gives=bytes, is_operators=True),
    Route("POST", ORG + "/storage/restores", backups.post_restore, "Operator: put such a file in place of all there is",
          takes=bytes, gives=Restored, is_operators=True),

    Route("POST", "/internal/v1/claims", attempts.post_claim, "Controller: offer room, get an attempt",
          takes=protocol.Claim, gives=protocol.Claimed),
    Route("GET", "/internal/v1/machines/{machine_id:str}", attempts.get_machine, "Controller: a machine's attempts",
          gives=protocol.Placed),
    Route("PUT", "/internal/v1/machines/{machine_id:str}", attempts.put_machine, "Controller: what a machine has",
          takes=protocol.MachineReport),
    Route("POST", ATTEMPT + "/process", attempts.post_process, "Supervisor: who I am",
          takes=protocol.ProcessReport, gives=protocol.Wanted),
    Route("POST", ATTEMPT + "/renew", attempts.post_renewal, "Supervisor: I am alive",
          takes=protocol.Renewal, gives=protocol.Wanted),
    Route("POST", ATTEMPT + "/lines", attempts.post_lines, "Supervisor: what the trainer said",
          takes=protocol.Lines, gives=protocol.LinesAccepted),
    Route("HEAD", ATTEMPT + "/blobs/{sha256:str}", attempts.head_blob, "Supervisor: is this file here"),
    Route("GET", ATTEMPT + "/blobs/{sha256:str}", attempts.get_blob, "Supervisor: a file of what I go on from"),
    Route("GET", ATTEMPT + "/resume", attempts.get_resume, "Supervisor: what is there to go on from",
          gives=protocol.Resumable),
    Route("GET", ATTEMPT + "/dataset", attempts.get_dataset, "Supervisor: which data the run learns from",
          gives=protocol.AttemptDataset),
    Route("GET", ATTEMPT + "/weights", attempts.get_weights, "Get the checkpoint that an attempt begins from",
          gives=protocol.AttemptWeights),
    Route("GET", ATTEMPT + "/dataset/contents", attempts.get_dataset_contents, "Supervisor: where its pictures lie"),
    Route("PUT", ATTEMPT + "/blobs/{sha256:str}", attempts.put_blob, "Supervisor: here is a file"),
    Route("POST", ATTEMPT + "/checkpoints", attempts.post_checkpoint, "Supervisor: a checkpoint is complete",
          takes=protocol.CheckpointReport, gives=protocol.CheckpointsKept),
    Route("POST", ATTEMPT + "/finish", attempts.post_finish, "Supervisor: how the attempt ended",
          takes=protocol.ExitReport),
)
# fmt: on
