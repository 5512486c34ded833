"""Datasets as data: formats, checks, reports, splits. No SQL, no HTTP, no torch.

records.py    one image and its annotations: the form every format is read into and written from
findings.py   the kinds of findings: code, severity, cause and fix
sources.py    the files of an import: a local folder, or packs in a blob store
images.py     inspection of image files that are not trusted
versions.py   a dataset version: its manifest, and the folder it is read from
checks.py     the checks of a record, once its image is known
readers/      one module per input format
writers/      one module per output format
ingest.py     from files to records: detect the format, read, check, keep
importing.py  an import as a process of its own, see docs/dataset-storage.md
exporting.py  an export as a process of its own
"""
