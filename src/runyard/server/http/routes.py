"""THE page that lists every route: method, path, function, what it takes and gives.

The application, the OpenAPI document and the tests of the door are all made from ``ROUTES``; a route that is not here
does not exist. Beside these stand ``/downloads/{link}`` (``downloads``) and ``/uploads/{link}`` (``uploads``), which
sign for themselves.
"""

import functools
import re
from typing import Any

from runyard import protocol
from runyard.server.http import (
    annotations,
    assets,
    attempts,
    audit,
    backups,
    bodies,
    datasets,
    flows,
    health,
    imports,
    keys,
    models,
    runs,
    storage,
    training_projects,
)
from runyard.server.http.route import BACKUP_BODY_BYTES, LARGE_BODY_BYTES, Route
from runyard.server.services.operations.backups import Restored, StoreContents
from runyard.server.services.operations.storage import StorageReport
from runyard.server.services.runs.telemetry import LogPage, MetricPage
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
from vi.api.resources.flows.responses import Flow, FlowAcceleratorList
from vi.api.resources.keys.responses import IssuedKey, Key
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run, RunOutcomes
from vi.api.resources.training_projects.responses import TrainingProject

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
KEY = ORG + "/keys/{key_id:str}"
IMPORT = DATASET + "/imports/{import_id:str}"
ATTEMPT = "/internal/v1/attempt"
IF_MATCH = {
    *(("PATCH", path) for path in (RUN, FLOW, PROJECT, DATASET)),
    *(("DELETE", path) for path in (RUN, FLOW, PROJECT, DATASET)),
    *(("PUT", path) for path in (FLOW, PROJECT)),
}

# fmt: off
ROUTES = (
    Route("GET", "/health", health.get_health, "Whether the server is up; no key needed", gives=health.Health),
    Route("GET", "/openapi.json", health.get_openapi, "This document", gives=dict[str, Any]),

    Route("GET", ORG + "/runs", runs.list_runs, "List runs, newest first", gives=Run, is_page=True,
          query=PAGE + FILTERS),
    Route("GET", ORG + "/simpleRuns", runs.list_runs, "List runs, newest first", gives=Run, is_page=True,
          query=PAGE + FILTERS),
    Route("GET", RUN, runs.get_run, "Read a run", gives=Run),
    Route("PUT", RUN, runs.put_run, "Create a run; repeating it is harmless", takes=bodies.NewRun, gives=Run,
          status=(200, 201)),
    Route("PATCH", RUN, runs.patch_run, "Update or kill a run", takes=bodies.ChangedRun, gives=Run),
    Route("DELETE", RUN, runs.delete_run, "Delete a run and all that belongs to it", status=(204,)),
    Route("POST", ORG + "/runs:kill", runs.kill_runs, "Kill many runs, by ids or by a filter",
          takes=bodies.KilledRuns, gives=RunOutcomes),
    Route("POST", ORG + "/runs:delete", runs.delete_runs, "Delete many runs, by ids or by a filter",
          takes=bodies.DeletedRuns, gives=RunOutcomes),
    Route("GET", RUN + "/logs", runs.get_logs, "Read log lines", gives=LogPage,
          query=("since", "until", "limit", "block", "wait"), may_wait=True),
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
    Route("PUT", FLOW, flows.put_flow, "Create or replace a flow", takes=bodies.NewFlow, gives=Flow, status=(200, 201)),
    Route("PATCH", FLOW, flows.patch_flow, "Update a flow", takes=bodies.ChangedFlow, gives=Flow),
    Route("DELETE", FLOW, flows.delete_flow, "Delete a flow", status=(204,)),
    Route("GET", FLOW + "/accelerators", flows.get_accelerators, "Whether a run fits into the accelerators there are",
          gives=FlowAcceleratorList),
    Route("GET", ORG + "/flowSchemas/{version:str}", flows.get_flow_schema, "JSON Schema of flows",
          gives=dict[str, Any]),

    Route("GET", ORG + "/trainingProjects", training_projects.list_projects, "List training projects, newest first",
          gives=TrainingProject, is_page=True, query=PAGE),
    Route("GET", PROJECT, training_projects.get_project, "Read a training project", gives=TrainingProject),
    Route("PUT", PROJECT, training_projects.put_project, "Create or replace a training project",
          takes=bodies.NewProject, gives=TrainingProject, status=(200, 201)),
    Route("PATCH", PROJECT, training_projects.patch_project, "Update a training project",
          takes=bodies.ChangedProject, gives=TrainingProject),
    Route("DELETE", PROJECT, training_projects.delete_project, "Delete a training project", status=(204,)),

    Route("GET", ORG + "/datasets", datasets.list_datasets, "List datasets, newest first", gives=Dataset, is_page=True,
          query=PAGE),
    Route("GET", ORG + "/simpleDatasets", datasets.list_datasets, "List datasets, newest first", gives=Dataset,
          is_page=True, query=PAGE),
    Route("POST", ORG + "/datasets", datasets.post_dataset, "Create an empty dataset", takes=bodies.NewDataset,
          gives=Dataset, status=(201,)),
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
          gives=DatasetImport, status=(201,)),
    Route("GET", DATASET + "/imports", imports.list_imports, "List imports, newest first", gives=DatasetImport,
          is_page=True, query=PAGE),
    Route("GET", IMPORT, imports.get_import, "Read an import", gives=DatasetImport),
    Route("POST", IMPORT, imports.act_on_import, "`:finish`, everything is sent; `:cancel`, take nothing",
          takes=bodies.FinishedImport, gives=DatasetImport, actions=("finish", "cancel"),
          largest_body=LARGE_BODY_BYTES),
    Route("GET", IMPORT + "/findings", imports.list_findings, "List what was found, in the order it was found",
          gives=Finding, is_page=True, query=(*PAGE, "severity", "code")),
    Route("GET", IMPORT + "/report", imports.get_report, "What was found, by code; a page for `Accept: text/html`",
          gives=ImportReport, media=("text/html",)),

    Route("GET", DATASET + "/preview", datasets.get_preview, "Some pictures with what is said of them, as one PNG",
          gives=bytes, query=("count", "seed", "version"), media=("image/png",)),
    Route("POST", DATASET + "/datasetExports", datasets.post_export, "Begin an export", takes=bodies.NewExport,
          gives=DatasetExport, status=(201,)),
    Route("GET", DATASET + "/datasetExports", datasets.list_exports, "List exports, newest first",
          gives=DatasetExport, is_page=True, query=PAGE),
    Route("GET", DATASET + "/datasetExports/{export_id:str}", datasets.get_export, "Read an export",
          gives=DatasetExport),

    Route("GET", DATASET + "/assets", assets.list_assets, "List pictures", gives=Asset, is_page=True,
          query=(*PAGE, "sortBy", "o", "filter", "contents")),
    Route("GET", DATASET + "/assets:count", assets.count_assets, "How many pictures there are", gives=AssetCount,
          query=("filter",)),
    Route("GET", ASSET, assets.get_asset, "Read a picture's facts", gives=Asset, query=("contents",)),
    Route("DELETE", ASSET, assets.delete_asset, "Delete a picture and what is said of it", status=(204,)),
    Route("POST", ASSET + "/name", assets.rename_asset, "Rename a picture", takes=bodies.NewName, gives=Asset),
    Route("POST", DATASET + "/assetFiles/{filename:str}/name", assets.rename_file, "Rename a picture by its name",
          takes=bodies.NewName, gives=Asset),
    Route("POST", DATASET + "/deleteManyAssetsSessions", assets.post_bulk_deletion, "Begin to delete many pictures",
          takes=bodies.NewBulkDeletion, gives=BulkDeletion, status=(201,)),
    Route("GET", DATASET + "/deleteManyAssetsSessions", assets.list_bulk_deletions, "List such deletions, newest first",
          gives=BulkDeletion, is_page=True, query=PAGE),
    Route("GET", DATASET + "/deleteManyAssetsSessions/{session_id:str}", assets.get_bulk_deletion,
          "How that goes", gives=BulkDeletion),
    Route("POST", SOURCE + "/assetIngestionSessions", assets.post_ingestion, "Announce pictures, one file each",
          takes=bodies.NewIngestion, gives=AssetIngestionSession, largest_body=LARGE_BODY_BYTES, status=(201,)),
    Route("GET", SOURCE + "/assetIngestionSessions", assets.list_ingestions, "List such sessions, newest first",
          gives=AssetIngestionSession, is_page=True, query=PAGE),
    Route("GET", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.get_ingestion, "Read one",
          gives=AssetIngestionSession),
    Route("POST", SOURCE + "/assetIngestionSessions/{session_id:str}", assets.act_on_ingestion, "`:cancel`",
          gives=AssetIngestionSession, actions=("cancel",)),
    Route("POST", SOURCE + "/multipartUploads", assets.post_multipart, "Begin a large file",
          takes=bodies.NewMultipart, gives=MultipartUpload, status=(201,)),
    Route("POST", MULTIPART + "/parts/{part:str}", assets.post_part, "Where a part goes", gives=PartUpload),
    Route("POST", MULTIPART + "/parts/{part:str}/completion", assets.post_part_completion, "A part has been sent",
          gives=dict[str, Any]),
    Route("POST", MULTIPART + "/completion", assets.post_multipart_completion, "All parts have been sent",
          gives=MultipartUpload),
    Route("DELETE", MULTIPART, assets.delete_multipart, "Forget the parts", status=(204,)),

    Route("GET", ASSET + "/annotations", annotations.list_annotations, "List what is said of a picture",
          gives=Annotation, is_page=True, query=PAGE),
    Route("GET", ANNOTATION, annotations.get_annotation, "Read an annotation", gives=Annotation),
    Route("PUT", ANNOTATION, annotations.change_annotation, "Change an annotation", takes=dict[str, Any],
          gives=Annotation),
    Route("PATCH", ANNOTATION, annotations.change_annotation, "Change an annotation", takes=dict[str, Any],
          gives=Annotation),
    Route("DELETE", ANNOTATION, annotations.delete_annotation, "Delete an annotation", status=(204,)),
    Route("POST", DATASET + "/annotationImportSessions", annotations.post_session, "Begin to send annotation files",
          takes=bodies.NewAnnotationImport, gives=AnnotationImportSession, status=(201,)),
    Route("GET", DATASET + "/annotationImportSessions", annotations.list_sessions, "List such sessions, newest first",
          gives=AnnotationImportSession, is_page=True, query=PAGE),
    Route("GET", SESSION, annotations.get_session, "Read one", gives=AnnotationImportSession),
    Route("POST", SESSION + "/files", annotations.post_files, "Announce files", takes=bodies.NewFiles,
          gives=FileUploads, largest_body=LARGE_BODY_BYTES),
    Route("GET", SESSION + "/files", annotations.get_files, "How many files have come", gives=dict[str, Any]),
    Route("GET", SESSION + "/filesSample", annotations.get_files, "How many files have come", gives=dict[str, Any]),
    Route("GET", SESSION + "/logs", annotations.get_logs, "What was found", gives=Finding, is_page=True, query=PAGE),
    Route("PATCH", SESSION + "/status", annotations.patch_status, "All files are sent, or none will be",
          takes=dict[str, Any], gives=AnnotationImportSession),

    Route("GET", ORG + "/keys", keys.list_keys, "List keys, newest first", gives=Key, is_page=True, query=PAGE,
          role="admin"),
    Route("POST", ORG + "/keys", keys.post_key, "Create a key; its secret is in this response alone",
          takes=bodies.NewKey, gives=IssuedKey, role="admin", status=(201,)),
    Route("GET", KEY, keys.get_key, "Get a key, without its secret", gives=Key, role="admin"),
    Route("DELETE", KEY, keys.delete_key, "Revoke a key; it stays listed", gives=Key, role="admin"),
    Route("POST", KEY + "/rotations", keys.post_rotation, "Replace a key; the new secret is in this response alone",
          takes=bodies.NewRotation, gives=IssuedKey, role="admin", status=(201,)),
    Route("GET", ORG + "/audit", audit.list_audit, "List audit rows, newest first", gives=AuditEntry, is_page=True,
          query=(*PAGE, "actor", "action", "since", "until"), role="admin"),

    Route("GET", ORG + "/storage", storage.get_storage, "Whether database and disk agree", gives=StorageReport),
    Route("POST", ORG + "/storage/collections", storage.post_collection, "Remove bytes and folders nothing needs",
          gives=StorageReport, role="admin"),
    Route("GET", ORG + "/storage/contents", backups.get_contents, "Operator: what a restore would replace",
          gives=StoreContents, is_operators=True, role="admin", query=("since",)),
    Route("POST", ORG + "/storage/backups", backups.post_backup, "Operator: the whole instance as one file",
          gives=bytes, is_operators=True, role="admin", media=("application/x-tar",)),
    Route("POST", ORG + "/storage/restores", backups.post_restore, "Operator: put such a file in place of all there is",
          takes=bytes, gives=Restored, is_operators=True, role="admin", largest_body=BACKUP_BODY_BYTES,
          media=("application/x-tar",)),

    Route("POST", "/internal/v1/claims", attempts.post_claim, "Controller: offer room, get an attempt",
          takes=protocol.Claim, gives=protocol.Claimed, largest_body=LARGE_BODY_BYTES, may_wait=True),
    Route("GET", "/internal/v1/machines/{machine_id:str}", attempts.get_machine, "Controller: a machine's attempts",
          gives=protocol.Placed),
    Route("PUT", "/internal/v1/machines/{machine_id:str}", attempts.put_machine, "Controller: what a machine has",
          takes=protocol.MachineReport, largest_body=LARGE_BODY_BYTES, status=(204,)),
    Route("POST", ATTEMPT + "/process", attempts.post_process, "Supervisor: who I am",
          takes=protocol.ProcessReport, gives=protocol.Wanted, largest_body=LARGE_BODY_BYTES),
    Route("POST", ATTEMPT + "/renew", attempts.post_renewal, "Supervisor: I am alive",
          takes=protocol.Renewal, gives=protocol.Wanted, largest_body=LARGE_BODY_BYTES),
    Route("POST", ATTEMPT + "/lines", attempts.post_lines, "Supervisor: what the trainer said",
          takes=protocol.Lines, gives=protocol.LinesAccepted, largest_body=LARGE_BODY_BYTES),
    Route("HEAD", ATTEMPT + "/blobs/{sha256:str}", attempts.head_blob, "Supervisor: is this file here"),
    Route("GET", ATTEMPT + "/blobs/{sha256:str}", attempts.get_blob, "Supervisor: a file of what I go on from",
          gives=bytes, media=("application/octet-stream",)),
    Route("GET", ATTEMPT + "/resume", attempts.get_resume, "Supervisor: what is there to go on from",
          gives=protocol.Resumable),
    Route("GET", ATTEMPT + "/dataset", attempts.get_dataset, "Supervisor: which data the run learns from",
          gives=protocol.AttemptDataset),
    Route("GET", ATTEMPT + "/weights", attempts.get_weights, "Get the checkpoint that an attempt begins from",
          gives=protocol.AttemptWeights),
    Route("GET", ATTEMPT + "/dataset/contents", attempts.get_dataset_contents, "Supervisor: where its pictures lie",
          gives=bytes, media=("application/x-ndjson",)),
    Route("PUT", ATTEMPT + "/blobs/{sha256:str}", attempts.put_blob, "Supervisor: here is a file", largest_body=None,
          takes=bytes, media=("application/octet-stream",), status=(201,)),
    Route("POST", ATTEMPT + "/checkpoints", attempts.post_checkpoint, "Supervisor: a checkpoint is complete",
          takes=protocol.CheckpointReport, gives=protocol.CheckpointsKept, largest_body=LARGE_BODY_BYTES,
          status=(201,)),
    Route("POST", ATTEMPT + "/finish", attempts.post_finish, "Supervisor: how the attempt ended",
          takes=protocol.ExitReport, largest_body=LARGE_BODY_BYTES, status=(204,)),
)
# fmt: on


@functools.cache
def _patterns() -> dict[re.Pattern[str], list[str]]:
    found: dict[re.Pattern[str], list[str]] = {}
    for route in ROUTES:
        pattern = re.compile(re.sub(r"\\\{\w+:str\\\}", "[^/]+", re.escape(route.path)))
        found.setdefault(pattern, []).append(route.method)
    return found


def allowed_methods(path: str) -> list[str]:
    """Return the methods that the routes of a path take."""
    methods = {method for pattern, found in _patterns().items() if pattern.fullmatch(path) for method in found}
    return sorted({*methods, "OPTIONS"})
