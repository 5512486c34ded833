"""Tables of a backup, written by scripts/backup-schema from the tables of the store.

A column is ``name:type(length)``. ``*`` marks the primary key, ``?`` a value that may be null, and
``=`` a column that older files may lack.
"""

REVISION = "0017"
TABLES = {
    "assets": (
        "*org:str(64) *dataset_id:str(255) *id:str(64) filename:str(1024) content:str(64) "
        "size_bytes:int64 width:int32 height:int32 mime:str(64) crc32c:int64 frames:int32 "
        "is_turned:bool orientation:int32 custom:bytes inserted_by:str record_count:int32 "
        "split:str(16)?= generation:int32 time_created:int64 last_updated:int64 "
        "contents_updated:int64 "
    ),
    "attempts": (
        "*org:str(64) *run_id:str(255) *number:int32 epoch:str(32) token_number:int64 "
        "claim_id:str(255) machine_id:str(255) host:str expires_pulse:int64 lost_pulse:int64?= "
        "started:bool charged:bool closed:bool boot_id:str(64) pid:int64 start_ticks:int64 "
        "time_claimed:int64 "
    ),
    "audit": (
        "*number:int32 org:str(64) time:int64 actor:str address:str action:str(64) target:str "
        "count:int64= "
    ),
    "bulk_deletions": (
        "*org:str(64) *id:str(255) dataset_id:str(255) state:str(16) spec:bytes why:str?= "
        "deleted_count:int64 time_created:int64 last_updated:int64 "
    ),
    "contents": ("*org:str(64) *content:str(64) sha256:str(64) offset:int64 size_bytes:int64 "),
    "dataset_deletions": (
        "*org:str(64) *dataset_id:str(255) user:str time_created:int64 time_ended:int64?= "
    ),
    "dataset_exports": (
        "*org:str(64) *id:str(255) dataset_id:str(255) state:str(16) spec:bytes version:str(32)?= "
        "why:str?= sha256:str(64)?= size_bytes:int64 time_created:int64 last_updated:int64 "
    ),
    "dataset_versions": (
        "*org:str(64) *dataset_id:str(255) *id:str(32) number:int32 sha256:str(64) "
        "manifest_bytes:int64 asset_count:int64 record_count:int64 size_bytes:int64 "
        "time_created:int64 "
    ),
    "datasets": (
        "*org:str(64) *id:str(255) name:str type:str(32) description:str attributes:bytes "
        "generation:int32 time_created:int64 last_updated:int64 deleted:bool asset_count:int64 "
        "annotated_count:int64 record_count:int64 size_bytes:int64 next_number:int64 "
        "revision:int64 version:str(32)?= version_revision:int64 version_count:int32 "
    ),
    "evaluations": (
        "*org:str(64) *run_id:str(255) *step:int64 attempt:int32 time:int64 sample_count:int32 "
        "total:int64 size_bytes:int64 is_left_out:bool "
    ),
    "event_counters": ("*org:str(64) number:int64 kept_after:int64 "),
    "events": (
        "*org:str(64) *number:int64 time:int64 kind:str(32) target:str(255) what:str(32) actor:str "
        "details:bytes "
    ),
    "flows": (
        "*org:str(64) *id:str(255) document:bytes etag:str(32) generation:int32 body_sha256:bytes "
        "time_created:int64 "
    ),
    "import_files": (
        "*org:str(64) *import_id:str(255) *number:int32 name:str(1024)?= size_bytes:int64 "
        "crc32c:int64?= mime:str(255)?= custom:bytes?= sha256:str(64)?= fault:str?= "
    ),
    "imports": (
        "*org:str(64) *id:str(255) dataset_id:str(255) kind:str(32) state:str(16) spec:bytes "
        "seen:bytes attributes:bytes user:str why:str?= version:str(32)?= sha256:str(64)?= "
        "images_done:int64 records_done:int64 deadline:int64 time_created:int64 last_updated:int64 "
        "time_sealed:int64?= "
    ),
    "keys": (
        "*id:str(16) org:str(64)?= role:str(16) secret_mac:bytes name:str time_created:int64 "
        "expires:int64?= revoked:int64?= created_by:str?= last_used:int64?= replaced_by:str(16)?= "
    ),
    "log_blocks": (
        "*org:str(64) *run_id:str(255) *block:int64 time_min:int64 time_max:int64 levels:int32 "
        "signature:bytes "
    ),
    "log_lines": (
        "*org:str(64) *run_id:str(255) *number:int64 time:int64 attempt:int32 stream:str(16) "
        "text:str "
    ),
    "meta": ("*key:str(64) value:str "),
    "metric_buckets": (
        "*org:str(64) *run_id:str(255) *key_number:int32 *level:int32 *page:int64 buckets:bytes "
    ),
    "metric_chunks": (
        "*org:str(64) *run_id:str(255) *first_number:int64 last_number:int64 axis:int32 size:int32 "
        "min_step:int64 max_step:int64 points:bytes "
    ),
    "metric_keys": (
        "*org:str(64) *run_id:str(255) *key:str number:int32 axis:int32 total:int64 "
        "first_step:int64?= last_step:int64?= "
    ),
    "metric_values": (
        "*org:str(64) *run_id:str(255) *first_number:int64 *key_number:int32 measured:bytes "
    ),
    "metrics": (
        "*org:str(64) *run_id:str(255) *number:int64 step:int64 epoch:float time:int64 "
        "attempt:int32 measured:bytes axis:int32= "
    ),
    "organizations": ("*id:str(64) name:str time_created:int64 "),
    "output_files": (
        "*org:str(64) *run_id:str(255) *output_id:str(255) *path:str(1024) size_bytes:int64 "
        "sha256:str(64) "
    ),
    "outputs": (
        "*org:str(64) *run_id:str(255) *id:str(255) number:int32 attempt:int32 step:int64 "
        "epoch:int32 measured:bytes is_best:bool time:int64 archive_size_bytes:int64 "
        "archive_sha256:str(64) "
    ),
    "pulse": ("*id:int32 lived_ms:int64 token_number:int64 "),
    "records": (
        "*org:str(64) *dataset_id:str(255) *number:int64 id:str(512) asset_id:str(64) "
        "contents:bytes category:str?= generation:int32 time_created:int64 last_updated:int64 "
    ),
    "resume_files": (
        "*org:str(64) *run_id:str(255) *path:str(1024) size_bytes:int64 sha256:str(64) "
    ),
    "run_attributes": ("*org:str(64) *run_id:str(255) *key:str value:str number:int64= "),
    "run_datasets": ("*org:str(64) *run_id:str(255) *dataset_id:str(255) version:str(32) "),
    "run_metrics": ("*org:str(64) *run_id:str(255) *key:str value:float last:float number:int64 "),
    "runs": (
        "*org:str(64) *id:str(255) document:bytes etag:str(32) body_sha256:bytes condition:str(32) "
        "flow_id:str(255)?= training_project:str(255)?= priority:int32 time_created:int64 "
        "killed:bool deleted:bool log_count:int64 metric_count:int64 metric_packed:int64= "
        "log_bytes:int64= log_left_out:int64= requirements:str(512)?= waits:str(32)= "
        "duration:int64= "
    ),
    "sample_images": ("*org:str(64) *run_id:str(255) *number:int64 png:bytes "),
    "samples": (
        "*org:str(64) *run_id:str(255) *step:int64 *number:int64 score:float?= document:bytes "
    ),
    "saved_views": (
        "*org:str(64) *id:str(255) document:bytes etag:str(32) generation:int32 body_sha256:bytes "
        "time_created:int64 "
    ),
    "stream_offsets": (
        "*org:str(64) *run_id:str(255) *attempt:int32 *stream:str(16) offset:int64 "
    ),
    "tombstones": ("*org:str(64) *kind:str(32) *id:str(255) time:int64 "),
    "training_projects": (
        "*org:str(64) *id:str(255) document:bytes etag:str(32) generation:int32 body_sha256:bytes "
        "time_created:int64 "
    ),
    "unneeded_blobs": ("*org:str(64) *sha256:str(64) "),
    "unneeded_contents": ("*org:str(64) *content:str(64) is_held:bool "),
    "weight_files": (
        "*org:str(64) *run_id:str(255) *path:str(1024) size_bytes:int64 sha256:str(64) "
    ),
}
