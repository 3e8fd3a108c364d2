"""Pages that open in a browser without a network: one file with data, style, scripts and plotly."""

from __future__ import annotations

import base64
import html
import json
import re
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

LEVELS = 65_534  # that a number can have; one more says that it is missing


def page(title: str, package: str, name: str, data: dict[str, Any]) -> bytes:
    """The page around a fragment that comes with the package: elements, then one script.

    Args:
        title: plain text. package, name: of the fragment, an .html file.
        data: plain types, which the script knows as `data`, the lines below the title as "summary"
            among them. Nothing in it becomes markup.
    """
    body, script = _read(package, name).split("<script>")
    parts = {
        "title": html.escape(title), "body": body, "script": script.replace("</script>", ""),
        "plotly": get_plotlyjs(), "data": _as_json({"title": title, **data}),
    }
    skeleton = _read("sparsefield.evaluate", "page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], skeleton).encode(
        errors="backslashreplace")  # names of files need not be text


def _read(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")


def _as_json(data: dict[str, Any]) -> str:
    """JSON that ends no script; NaN and infinity are null."""
    return re.sub(r"[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}",
                  json.dumps(finite(data), ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """Plain types with None for what is no finite number; arrays become lists, in 10 digits."""
    if isinstance(value, dict):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, (np.ndarray, pd.Series)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.10g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def packed(values: np.ndarray) -> dict[str, Any]:
    """Numbers (H, W) in 16 bits each; `unpack` of the page reads them. NaN is missing."""
    is_there = np.isfinite(values)
    low, high = (float(values[is_there].min()), float(values[is_there].max())) if (
        is_there.any()) else (0.0, 0.0)
    unit = np.where(is_there, values - low, 0) / ((high - low) or 1.0)
    levels = np.where(is_there, np.round(unit * LEVELS), LEVELS + 1).astype("<u2")
    return {"low": low, "high": high, "levels": LEVELS, "shape": list(values.shape),
            "base64": base64.b64encode(levels.tobytes()).decode()}
