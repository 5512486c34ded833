"""Bytes by content hash: checkpoints now, datasets later. ``Archive`` serves a checkpoint as one tar."""

from runyard.blobs.archive import Archive, ArchiveFile
from runyard.blobs.errors import BlobDamaged, BlobError, BlobMismatch, BlobMissing, InvalidBlobName
from runyard.blobs.folder import FolderBlobs
from runyard.blobs.protocol import Blobs, Upload

__all__ = [
    "Archive",
    "ArchiveFile",
    "BlobDamaged",
    "BlobError",
    "BlobMismatch",
    "BlobMissing",
    "Blobs",
    "FolderBlobs",
    "InvalidBlobName",
    "Upload",
]
