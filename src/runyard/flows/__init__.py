"""The flow language: what a flow may contain, its defaults, and every problem a flow can have.

No torch.

``validate`` is what the server calls, ``resolve`` what the trainer calls. ``blocks`` defines every
field and ``families`` every model family.
"""

from runyard.flows.json_schema import schema
from runyard.flows.problems import FlowProblems, Problem
from runyard.flows.resolved_flow import ResolvedFlow, build_flow_document
from runyard.flows.validation import resolve, validate

__all__ = [
    "FlowProblems",
    "Problem",
    "ResolvedFlow",
    "build_flow_document",
    "resolve",
    "schema",
    "validate",
]
