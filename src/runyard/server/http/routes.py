"""The list of all routes: method, path, endpoint, summary, request body, and response.

The application, the OpenAPI document and the tests of the gateway are made from ``ROUTES``; a route
that is not listed here does not exist. The only other paths are ``/downloads/{link}``
(``downloads``) and ``/uploads/{link}`` (``uploads``), whose links are signed.
"""

import functools
import re
from typing import Any

from runyard import protocol
from runyard.server.http.endpoints import (
    annotations,
    assets,
    attempts,
    audit,
    backups,
    bodies,
    datasets,
    events,
    flows,
    health,
    imports,
    keys,
    models,
    run_output,
    runs,
    sessions,
    storage,
    training_projects,
    views,
)
from runyard.server.http.route import BACKUP_BODY_BYTES, LARGE_BODY_BYTES, Route
from runyard.server.services.operations.backups import Restored, StoreContents
from runyard.server.services.operations.storage import StorageReport
from runyard.server.services.runs.telemetry.logs import LogPage
from runyard.server.services.runs.telemetry.samples import SamplePage
from runyard.server.services.runs.telemetry.series import MetricPage, MetricSeriesPage
from vi.api.resources.annotations.responses import Annotation, AnnotationImportSession, FileUploads
from vi.api.resources.assets.responses import (
    Asset,
    AssetCount,
    AssetIngestionSession,
    MultipartUpload,
    PartUpload,
)
from vi.api.resources.audit.responses import AuditEntry
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
from vi.api.resources.events.responses import EventPage
from vi.api.resources.flows.responses import Flow, FlowAcceleratorList, FlowCheck
from vi.api.resources.keys.responses import IssuedKey, Key
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run, RunCount, RunOutcomes
from vi.api.resources.sessions.responses import BrowserSession
from vi.api.resources.training_projects.responses import TrainingProject
from vi.api.resources.views.responses import SavedView

PAGE = ("s", "p")
FILTERS = (
    "filter",
    "condition",
    "flow",
    "trainingProject",
    "attribute",
    "createdAfter",
    "createdBefore",
)
SERIES = ("keys", "from", "to", "points", "bucketSteps", "since")
ORG = "/workspaces/{org:str}"
RUN = ORG + "/runs/{run_id:str}"
FLOW = ORG + "/flows/{flow_id:str}"
PROJECT = ORG + "/trainingProjects/{project_id:str}"
VIEW = ORG + "/views/{view_id:str}"
DATASET = ORG + "/datasets/{dataset:str}"
ASSET = DATASET + "/assets/{asset_id:str}"
ANNOTATION = ASSET + "/annotations/{annotation_id:str}"
SOURCE = DATASET + "/assetSources/managed/datature/default"
MULTIPART = SOURCE + "/multipartUploads/{upload_id:str}"
SESSION = DATASET + "/annotationImportSessions/{session_id:str}"
KEY = ORG + "/keys/{key_id:str}"
IMPORT = DATASET + "/imports/{import_id:str}"
ATTEMPT = "/internal/v1/attempt"
IF_MATCH = {
    *(("PATCH", path) for path in (RUN, FLOW, PROJECT, DATASET)),
    *(("DELETE", path) for path in (RUN, FLOW, PROJECT, DATASET)),
    *(("PUT", path) for path in (FLOW, PROJECT, VIEW)),
    ("DELETE", VIEW),
}

# fmt: off
ROUTES = (
    Route("GET", "/health", health.get_health, "Check whether the server is up; needs no key",
          returns=health.Health),
    Route("GET", "/openapi.json", health.get_openapi, "Get this document", returns=dict[str, Any]),

    Route("GET", ORG + "/runs", runs.list_runs, "List runs, newest first", returns=Run,
          is_page=True, query=(*PAGE, *FILTERS, "orderBy")),
    Route("GET", ORG + "/simpleRuns", runs.list_runs, "List runs, newest first", returns=Run,
          is_page=True, query=(*PAGE, *FILTERS, "orderBy")),
    Route("GET", ORG + "/runs:count", runs.count_runs, "Count runs by condition",
          returns=RunCount, query=FILTERS),
    Route("GET", RUN, runs.get_run, "Get a run", returns=Run),
    Route("PUT", RUN, runs.put_run, "Create a run; may be repeated", body=bodies.NewRun,
          returns=Run, statuses=(200, 201)),
    Route("PATCH", RUN, runs.patch_run, "Update or kill a run", body=bodies.ChangedRun,
          returns=Run),
    Route("DELETE", RUN, runs.delete_run, "Delete a run and everything that belongs to it",
          statuses=(204,)),
    Route("POST", ORG + "/runs:kill", runs.kill_runs, "Kill several runs, by ids or by a filter",
          body=bodies.KilledRuns, returns=RunOutcomes),
    Route("POST", ORG + "/runs:delete", runs.delete_runs,
          "Delete several runs, by ids or by a filter", body=bodies.DeletedRuns,
          returns=RunOutcomes),
    Route("POST", ORG + "/runs:tag", runs.tag_runs,
          "Set or remove attributes of several runs, by ids or by a filter",
          body=bodies.TaggedRuns, returns=RunOutcomes),
    Route("GET", RUN + "/logs", run_output.get_logs,
          "Get log lines: after a number, before one, or the newest; filtered and searched",
          returns=LogPage, query=run_output.LOG_QUERY, may_wait=True),
    Route("GET", RUN + "/logs/file", run_output.get_log_file,
          "Download the whole log as text; compressed for `Accept-Encoding: gzip`", returns=bytes,
          media_types=("text/plain",)),
    Route("GET", RUN + "/samples", run_output.list_samples,
          "List sample predictions of an evaluation, or of one image (`index`) in all of them",
          returns=SamplePage, query=(*PAGE, "evaluation", "orderBy", "index")),
    Route("GET", RUN + "/samples/{index:str}/image", run_output.get_sample_image,
          "Get the image of a sample, or a thumbnail of it", returns=bytes, query=("size",),
          media_types=("image/png", "image/webp", "image/jpeg")),
    Route("GET", RUN + "/metrics", runs.get_metrics, "Get metric points", returns=MetricPage,
          query=("since", "limit")),
    Route("GET", RUN + "/metrics:series", runs.get_metric_series,
          "Get metric series as buckets for charts", returns=MetricSeriesPage, query=SERIES),
    Route("GET", ORG + "/runs:series", runs.get_metric_series_of_runs,
          "Get metric series of several runs", returns=MetricSeriesPage, query=("id", *SERIES)),
    Route("GET", RUN + "/outputs", models.list_models, "List a run's models, newest last",
          returns=Model, is_page=True, query=(*PAGE, "contents")),
    Route("GET", RUN + "/outputs/{checkpoint:str}", models.get_model,
          "Get a model; `latest` and `best` are ids too", returns=Model, query=("contents",)),

    Route("GET", ORG + "/flows", flows.list_flows, "List flows, newest first", returns=Flow,
          is_page=True, query=PAGE),
    Route("GET", ORG + "/simpleFlows", flows.list_flows, "List flows, newest first", returns=Flow,
          is_page=True, query=PAGE),
    Route("POST", ORG + "/flows:check", flows.check_flow,
          "Check a flow without saving it: problems, plan, memory", body=bodies.CheckedFlow,
          returns=FlowCheck),
    Route("GET", FLOW, flows.get_flow, "Get a flow", returns=Flow),
    Route("PUT", FLOW, flows.put_flow, "Create or replace a flow", body=bodies.NewFlow,
          returns=Flow, statuses=(200, 201)),
    Route("PATCH", FLOW, flows.patch_flow, "Update a flow", body=bodies.ChangedFlow, returns=Flow),
    Route("DELETE", FLOW, flows.delete_flow, "Delete a flow", statuses=(204,)),
    Route("GET", FLOW + "/accelerators", flows.get_accelerators,
          "Check whether a flow fits the available accelerators", returns=FlowAcceleratorList),
    Route("GET", ORG + "/flowSchemas/{version:str}", flows.get_flow_schema,
          "Get the JSON Schema of flows", returns=dict[str, Any]),

    Route("GET", ORG + "/views", views.list_views, "List saved views of runs, newest first",
          returns=SavedView, is_page=True, query=PAGE),
    Route("GET", VIEW, views.get_view, "Get a saved view", returns=SavedView),
    Route("PUT", VIEW, views.put_view, "Create or replace a saved view", body=bodies.NewView,
          returns=SavedView, statuses=(200, 201)),
    Route("DELETE", VIEW, views.delete_view, "Delete a saved view", statuses=(204,)),

    Route("GET", ORG + "/trainingProjects", training_projects.list_projects,
          "List training projects, newest first", returns=TrainingProject, is_page=True,
          query=PAGE),
    Route("GET", PROJECT, training_projects.get_project, "Get a training project",
          returns=TrainingProject),
    Route("PUT", PROJECT, training_projects.put_project, "Create or replace a training project",
          body=bodies.NewProject, returns=TrainingProject, statuses=(200, 201)),
    Route("PATCH", PROJECT, training_projects.patch_project, "Update a training project",
          body=bodies.ChangedProject, returns=TrainingProject),
    Route("DELETE", PROJECT, training_projects.delete_project, "Delete a training project",
          statuses=(204,)),

    Route("GET", ORG + "/datasets", datasets.list_datasets, "List datasets, newest first",
          returns=Dataset, is_page=True, query=PAGE),
    Route("GET", ORG + "/simpleDatasets", datasets.list_datasets, "List datasets, newest first",
          returns=Dataset, is_page=True, query=PAGE),
    Route("POST", ORG + "/datasets", datasets.post_dataset, "Create an empty dataset",
          body=bodies.NewDataset, returns=Dataset, statuses=(201,)),
    Route("GET", DATASET, datasets.get_dataset, "Get a dataset", returns=Dataset),
    Route("PATCH", DATASET, datasets.patch_dataset, "Update a dataset", body=bodies.ChangedDataset,
          returns=Dataset),
    Route("DELETE", DATASET, datasets.delete_dataset, "Delete a dataset and its content",
          returns=DeletedDataset),
    Route("GET", DATASET + "/deleteOperation", datasets.get_deletion, "Get a deletion's progress",
          returns=DeletedDataset),
    Route("GET", DATASET + "/collaborators", datasets.list_collaborators,
          "List a dataset's collaborators (always empty)", returns=dict[str, Any], is_page=True,
          query=PAGE),
    Route("GET", DATASET + "/aggregationStatistics", datasets.get_statistics,
          "Get a dataset's statistics", returns=dict[str, Any]),
    Route("POST", DATASET + "/aggregationStatistics:generate", datasets.get_statistics,
          "Get a dataset's statistics; they are always current", returns=dict[str, Any]),
    Route("GET", DATASET + "/versions", datasets.list_versions, "List versions, newest first",
          returns=DatasetVersion, is_page=True, query=PAGE),
    Route("GET", DATASET + "/versions/{version:str}", datasets.get_version, "Get a version",
          returns=DatasetVersion),
    Route("POST", DATASET + "/imports", imports.post_import, "Start an import",
          body=bodies.NewImport, returns=DatasetImport, statuses=(201,)),
    Route("GET", DATASET + "/imports", imports.list_imports, "List imports, newest first",
          returns=DatasetImport, is_page=True, query=PAGE),
    Route("GET", IMPORT, imports.get_import, "Get an import", returns=DatasetImport),
    Route("POST", IMPORT, imports.act_on_import,
          "Finish (`:finish`) or cancel (`:cancel`) an import", body=bodies.FinishedImport,
          returns=DatasetImport, actions=("finish", "cancel"), max_body_bytes=LARGE_BODY_BYTES),
    Route("GET", IMPORT + "/findings", imports.list_findings,
          "List an import's findings, oldest first", returns=Finding, is_page=True,
          query=(*PAGE, "severity", "code")),
    Route("GET", IMPORT + "/report", imports.get_report,
          "Get an import's report, by code; HTML for `Accept: text/html`", returns=ImportReport,
          media_types=("text/html",)),

    Route("GET", DATASET + "/preview", datasets.get_preview,
          "Get a preview: annotated sample images as one PNG", returns=bytes,
          query=("count", "seed", "version"), media_types=("image/png",)),
    Route("POST", DATASET + "/datasetExports", datasets.post_export, "Start an export",
          body=bodies.NewExport, returns=DatasetExport, statuses=(201,)),
    Route("GET", DATASET + "/datasetExports", datasets.list_exports, "List exports, newest first",
          returns=DatasetExport, is_page=True, query=PAGE),
    Route("GET", DATASET + "/datasetExports/{export_id:str}", datasets.get_export, "Get an export",
          returns=DatasetExport),

    Route("GET", DATASET + "/assets", assets.list_assets, "List assets", returns=Asset,
          is_page=True, query=(*PAGE, "sortBy", "o", "filter", "contents")),
    Route("GET", DATASET + "/assets:count", assets.count_assets, "Count assets",
          returns=AssetCount, query=("filter",)),
    Route("GET", ASSET, assets.get_asset, "Get an asset", returns=Asset, query=("contents",)),
    Route("DELETE", ASSET, assets.delete_asset, "Delete an asset and its annotations",
          statuses=(204,)),
    Route("POST", ASSET + "/name", assets.rename_asset, "Rename an asset", body=bodies.NewName,
          returns=Asset),
    Route("POST", DATASET + "/assetFiles/{filename:str}/name", assets.rename_file,
          "Rename an asset by its file name", body=bodies.NewName, returns=Asset),
    Route("POST", DATASET + "/deleteManyAssetsSessions", assets.post_bulk_deletion,
          "Start a bulk deletion of assets", body=bodies.NewBulkDeletion, returns=BulkDeletion,
          statuses=(201,)),
    Route("GET", DATASET + "/deleteManyAssetsSessions", assets.list_bulk_deletions,
          "List bulk deletions, newest first", returns=BulkDeletion, is_page=True, query=PAGE),
    Route("GET", DATASET + "/deleteManyAssetsSessions/{session_id:str}", assets.get_bulk_deletion,
          "Get a bulk deletion", returns=BulkDeletion),
    Route("POST", SOURCE + "/assetIngestionSessions", assets.post_ingestion,
          "Start an ingestion session; announces one file per image", body=bodies.NewIngestion,
          returns=AssetIngestionSession, max_body_bytes=LARGE_BODY_BYTES, statuses=(201,)),
    Route("GET", SOURCE + "/assetIngestionSessions", assets.list_ingestions,
          "List ingestion sessions, newest first", returns=AssetIngestionSession, is_page=True,
          query=PAGE),
    Route("GET", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.get_ingestion,
          "Get an ingestion session", returns=AssetIngestionSession),
    Route("POST", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.act_on_ingestion,
          "Cancel an ingestion session (`:cancel`)", returns=AssetIngestionSession,
          actions=("cancel",)),
    Route("POST", SOURCE + "/multipartUploads", assets.post_multipart, "Start a multipart upload",
          body=bodies.NewMultipart, returns=MultipartUpload, statuses=(201,)),
    Route("POST", MULTIPART + "/parts/{part:str}", assets.post_part,
          "Get the upload address of a part", returns=PartUpload),
    Route("POST", MULTIPART + "/parts/{part:str}/completion", assets.post_part_completion,
          "Complete a part", returns=dict[str, Any]),
    Route("POST", MULTIPART + "/completion", assets.post_multipart_completion,
          "Complete a multipart upload", returns=MultipartUpload),
    Route("DELETE", MULTIPART, assets.delete_multipart, "Abort a multipart upload",
          statuses=(204,)),

    Route("GET", ASSET + "/annotations", annotations.list_annotations,
          "List an asset's annotations", returns=Annotation, is_page=True, query=PAGE),
    Route("GET", ANNOTATION, annotations.get_annotation, "Get an annotation", returns=Annotation),
    Route("PUT", ANNOTATION, annotations.change_annotation, "Change an annotation",
          body=dict[str, Any], returns=Annotation),
    Route("PATCH", ANNOTATION, annotations.change_annotation, "Change an annotation",
          body=dict[str, Any], returns=Annotation),
    Route("DELETE", ANNOTATION, annotations.delete_annotation, "Delete an annotation",
          statuses=(204,)),
    Route("POST", DATASET + "/annotationImportSessions", annotations.post_session,
          "Start an annotation import session", body=bodies.NewAnnotationImport,
          returns=AnnotationImportSession, statuses=(201,)),
    Route("GET", DATASET + "/annotationImportSessions", annotations.list_sessions,
          "List annotation import sessions, newest first", returns=AnnotationImportSession,
          is_page=True, query=PAGE),
    Route("GET", SESSION, annotations.get_session, "Get an annotation import session",
          returns=AnnotationImportSession),
    Route("POST", SESSION + "/files", annotations.post_files, "Announce annotation files",
          body=bodies.NewFiles, returns=FileUploads, max_body_bytes=LARGE_BODY_BYTES),
    Route("GET", SESSION + "/files", annotations.get_files, "Count received files",
          returns=dict[str, Any]),
    Route("GET", SESSION + "/filesSample", annotations.get_files, "Count received files",
          returns=dict[str, Any]),
    Route("GET", SESSION + "/logs", annotations.get_logs, "List findings, oldest first",
          returns=Finding, is_page=True, query=PAGE),
    Route("PATCH", SESSION + "/status", annotations.patch_status,
          "Finish or abandon an annotation import session", body=dict[str, Any],
          returns=AnnotationImportSession),

    Route("GET", ORG + "/keys", keys.list_keys, "List keys, newest first", returns=Key,
          is_page=True, query=PAGE, role="admin"),
    Route("POST", ORG + "/keys", keys.post_key,
          "Create a key; only this response holds its secret", body=bodies.NewKey,
          returns=IssuedKey, role="admin", statuses=(201,)),
    Route("GET", KEY, keys.get_key, "Get a key, without its secret", returns=Key, role="admin"),
    Route("DELETE", KEY, keys.delete_key, "Revoke a key; it remains listed", returns=Key,
          role="admin"),
    Route("POST", KEY + "/rotations", keys.post_rotation,
          "Rotate a key; only this response holds the new secret", body=bodies.NewRotation,
          returns=IssuedKey, role="admin", statuses=(201,)),
    Route("GET", ORG + "/sessions", sessions.list_sessions,
          "List the browsers that are signed in, newest first", returns=BrowserSession,
          is_page=True, query=PAGE, role="admin"),
    Route("DELETE", ORG + "/sessions/{session_id:str}", sessions.delete_session,
          "End the session of a browser", statuses=(204,), role="admin"),
    Route("GET", ORG + "/audit", audit.list_audit, "List audit log entries, newest first",
          returns=AuditEntry, is_page=True, query=(*PAGE, "actor", "action", "since", "until"),
          role="admin"),

    Route("GET", ORG + "/events", events.list_events,
          "Get events in order; a stream of them for `Accept: text/event-stream`",
          returns=EventPage, query=("after", "wait", "limit", "run", "kind"), may_wait=True,
          media_types=("text/event-stream",)),

    Route("GET", ORG + "/storage", storage.get_storage, "Compare the database with the disk",
          returns=StorageReport),
    Route("POST", ORG + "/storage/collections", storage.post_collection,
          "Remove unneeded blobs and folders", returns=StorageReport, role="admin"),
    Route("GET", ORG + "/storage/contents", backups.get_contents,
          "Count what a restore would replace; operators only", returns=StoreContents,
          is_operator_only=True, role="admin", query=("since",)),
    Route("POST", ORG + "/storage/backups", backups.post_backup,
          "Download a backup of the instance; operators only", returns=bytes, is_operator_only=True,
          role="admin", media_types=("application/x-tar",)),
    Route("POST", ORG + "/storage/restores", backups.post_restore,
          "Restore a backup, replacing everything; operators only", body=bytes, returns=Restored,
          is_operator_only=True, role="admin", max_body_bytes=BACKUP_BODY_BYTES,
          media_types=("application/x-tar",)),

    Route("POST", "/internal/v1/claims", attempts.post_claim,
          "Claim a run for free capacity", body=protocol.Claim,
          returns=protocol.ClaimResult, max_body_bytes=LARGE_BODY_BYTES, may_wait=True),
    Route("GET", "/internal/v1/machines/{machine_id:str}", attempts.get_machine,
          "List a machine's attempts", returns=protocol.Placements),
    Route("PUT", "/internal/v1/machines/{machine_id:str}", attempts.put_machine,
          "Report a machine's resources", body=protocol.MachineReport,
          max_body_bytes=LARGE_BODY_BYTES, statuses=(204,)),
    Route("POST", ATTEMPT + "/process", attempts.post_process, "Register the supervisor process",
          body=protocol.ProcessReport, returns=protocol.DesiredState,
          max_body_bytes=LARGE_BODY_BYTES),
    Route("POST", ATTEMPT + "/renew", attempts.post_renewal, "Renew the lease of an attempt",
          body=protocol.Renewal, returns=protocol.DesiredState, max_body_bytes=LARGE_BODY_BYTES),
    Route("POST", ATTEMPT + "/lines", attempts.post_lines, "Send the trainer's output",
          body=protocol.Lines, returns=protocol.LinesAccepted, max_body_bytes=LARGE_BODY_BYTES),
    Route("HEAD", ATTEMPT + "/blobs/{sha256:str}", attempts.head_blob,
          "Check whether a blob is stored"),
    Route("GET", ATTEMPT + "/blobs/{sha256:str}", attempts.get_blob,
          "Download a blob to resume from", returns=bytes,
          media_types=("application/octet-stream",)),
    Route("GET", ATTEMPT + "/resume", attempts.get_resume,
          "List checkpoints to resume from", returns=protocol.ResumeCandidates),
    Route("GET", ATTEMPT + "/dataset", attempts.get_dataset,
          "Get the dataset version of the run", returns=protocol.AttemptDataset),
    Route("GET", ATTEMPT + "/weights", attempts.get_weights,
          "Get the checkpoint to take weights from", returns=protocol.AttemptWeights),
    Route("GET", ATTEMPT + "/dataset/contents", attempts.get_dataset_contents,
          "List where the dataset's images are stored", returns=bytes,
          media_types=("application/x-ndjson",)),
    Route("PUT", ATTEMPT + "/blobs/{sha256:str}", attempts.put_blob, "Upload a blob",
          max_body_bytes=None, body=bytes, media_types=("application/octet-stream",),
          statuses=(201,)),
    Route("POST", ATTEMPT + "/checkpoints", attempts.post_checkpoint,
          "Register a complete checkpoint", body=protocol.CheckpointReport,
          returns=protocol.CheckpointsKept, max_body_bytes=LARGE_BODY_BYTES, statuses=(201,)),
    Route("POST", ATTEMPT + "/finish", attempts.post_finish,
          "Report how the attempt ended", body=protocol.ExitReport,
          max_body_bytes=LARGE_BODY_BYTES, statuses=(204,)),
)
# fmt: on


@functools.cache
def _compile_patterns(routes: tuple[Route, ...]) -> dict[re.Pattern[str], list[str]]:
    methods: dict[re.Pattern[str], list[str]] = {}
    for route in routes:
        pattern = re.compile(re.sub(r"\\\{\w+:str\\\}", "[^/]+", re.escape(route.path)))
        methods.setdefault(pattern, []).append(route.method)
    return methods


def list_methods(path: str, *, routes: tuple[Route, ...] = ROUTES) -> list[str]:
    """Return the methods that a path accepts."""
    patterns = _compile_patterns(routes).items()
    methods = {method for pattern, found in patterns if pattern.fullmatch(path) for method in found}
    return sorted({*methods, "OPTIONS"})
