"""Temporary: old names until every wing is merged."""
from sparsefield.model.bundled import BUNDLED as SHIPPED
from sparsefield.model.bundled import V1, V2, find_bundled

find_shipped = find_bundled
__all__ = ["SHIPPED", "V1", "V2", "find_bundled", "find_shipped"]
