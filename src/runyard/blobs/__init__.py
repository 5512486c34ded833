"""Blobs: bytes by content hash. ``Archive`` serves a checkpoint as one tar."""

from runyard.blobs.archive import Archive, ArchiveFile
from runyard.blobs.errors import (
    BlobDamaged,
    BlobError,
    BlobHeld,
    BlobMismatch,
    BlobMissing,
    InvalidBlobName,
)
from runyard.blobs.folder import FolderBlobs
from runyard.blobs.holds import Hold, Holds
from runyard.blobs.protocol import Blobs, Upload

__all__ = [
    "Archive",
    "ArchiveFile",
    "BlobDamaged",
    "BlobError",
    "BlobHeld",
    "BlobMismatch",
    "BlobMissing",
    "Blobs",
    "FolderBlobs",
    "Hold",
    "Holds",
    "InvalidBlobName",
    "Upload",
]
