"""Datasets as data: formats, checks, reports, splits. No SQL, no HTTP, no torch.

records.py    one picture and what is said of it: the form every format is read into and written from
findings.py   what can be wrong with data, told with file, line, field, cause and cure
sources.py    the files of an import, wherever they lie
images.py     what a picture is, and whether it is whole, without trusting it
versions.py   a version: its manifest, and the folder it is read from
checks.py     what can be wrong with a record, once its picture is known
readers/      one module a format in
writers/      one module a format out
importing.py  an import from files to records: a process of its own, see docs/dataset-storage.md
"""
