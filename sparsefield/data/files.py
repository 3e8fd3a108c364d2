"""Which files can be read at all: regular ones, of kinds that are known here."""

from __future__ import annotations

from pathlib import Path

from sparsefield.errors import UserError

# Endings of files that people have and nothing here reads: what they are, and the way out.
_FOREIGN = {
    ".xlsx .xls .xlsm .ods .numbers": ("a spreadsheet", "save the sheet as CSV"),
    ".heic .heif": ("an HEIC picture", "convert it to PNG or JPEG"),
    ".dng .cr2 .cr3 .nef .arw .raf": ("a camera's raw file", "develop it to TIFF or PNG"),
    ".svg .pdf .eps .ps .ai": ("a drawing, not a picture of pixels", "export it as PNG"),
    ".h5 .hdf5 .hdf .he5 .zarr": (
        "HDF5", "save its arrays as .npz or .nc, or a list of points as CSV"),
    ".grib .grib2 .grb .grb2": ("GRIB", "save its arrays as .npz, or a list of points as CSV"),
    ".shp .gpkg .geojson .kml .json .xml": (
        "no table of rows and columns", "export its points as CSV"),
    ".mat .rds .rdata .sav .dta .feather": (
        "another program's own format", "export it as CSV or .npz"),
    ".pkl .pickle .pt .pth .joblib .safetensors": (
        "a file of Python objects or weights", "save its arrays as .npz"),
    ".zip .tar .tgz .7z .rar .bz2 .xz": ("an archive", "unpack it and name the file inside"),
    ".mp4 .mov .avi .mkv": ("a film", "export its frames as PNG"),
}
FOREIGN = {ending: kind for endings, kind in _FOREIGN.items() for ending in endings.split()}
# The same by how a file begins, for those whose name says something else or nothing.
BEGINNINGS = {
    b"PK\x03\x04": "an archive or a spreadsheet", b"\x89HDF": "NetCDF or HDF5", b"CDF": "NetCDF",
    b"PAR1": "Parquet (name it .parquet)", b"\x93NUMPY": "an array (name it .npy)",
    b"\x89PNG": "a PNG picture (name it .png)", b"\xff\xd8\xff": "a JPEG picture (name it .jpg)",
    b"II*\0": "a TIFF picture (name it .tif)", b"MM\0*": "a TIFF picture (name it .tif)",
    b"GRIB": "GRIB", b"\xd0\xcf\x11\xe0": "an old spreadsheet (save the sheet as CSV)",
    b"%PDF": "a PDF", b"GIF8": "a GIF picture (name it .gif)",
}


def require_file(path: Path) -> None:
    """Raises UserError unless it is a regular file: a pipe or device would be waited for."""
    try:
        if path.is_file():
            return
        what = ("is a folder" if path.is_dir() else
                "is a pipe or a device, not a file" if path.exists() else "no such file")
    except OSError as error:
        what = f"cannot be looked at ({error.strerror})"
    raise UserError(f"{path}: {what}; check the path")


def refuse_foreign(path: Path, instead: str) -> None:
    """Raises UserError for a file of a kind that people have and nothing here reads."""
    if found := FOREIGN.get(path.suffix.lower()):
        kind, way_out = found
        raise UserError(f"{path}: {kind}, which is not read here; {way_out} ({instead})")


def kind_by_beginning(content: bytes) -> str | None:
    """What a file is, in words, by how it begins; None if nothing is known of it."""
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "an HEIC picture (convert it to PNG or JPEG)"
    return next((kind for start, kind in BEGINNINGS.items() if content.startswith(start)), None)
