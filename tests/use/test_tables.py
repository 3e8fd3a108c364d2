"""Tables of measurements: what is typed, and what becomes x, y and values."""

from __future__ import annotations

import gzip

import numpy as np
import pandas
import pytest
import xarray

from sparsefield.errors import UserError
from sparsefield.use.read import read_measurements

PLACES = np.random.default_rng(0).uniform(500, 510, (200, 2))
ROWS = [(3.0, 50.0, 11.5), (4.0, 51.0, 12.0), (5.0, 52.5, 13.0)]  # x, y, value


def read(path, content, name="t.csv", **options):
    path = path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_measurements(str(path), channels=1, **options)


def rows(found):
    return [(*c, *v) for c, v in zip(found.coords.tolist(), found.values.tolist(), strict=True)]


def table(header: str, order: str = "xyv", separator: str = ",") -> str:
    """ROWS under a header, with the columns in another order; - is a column of ones."""
    lines = [separator.join("1" if letter == "-" else str(row["xyv".index(letter)])
                            for letter in order) for row in ROWS]
    return "\n".join([header, *lines] if header else lines) + "\n"


@pytest.mark.parametrize("header, order", [
    ("x,y,v", "xyv"), ("", "xyv"), ("X,Y,V", "xyv"), ("temperature,x_km,y_km", "vxy"),
    ("latitude_deg,longitude_deg,t", "yxv"), ("Lat (deg),Lon (deg),t", "yxv"),
    ("northing_m,easting_m,t", "yxv"), ("decimalLatitude,decimalLongitude,t", "yxv"),
    ('"Lat, deg","Lon, deg",t', "yxv"), ("Breite (°),Länge (°),t", "yxv"),
    ("v,Y_25832,X_25832", "vyx"), ("x,x_error,y,v", "x-yv"), ("id,lat,lon,t", "-yxv"),
    ("station id,t,lat,lon", "-vyx"), ("lon,lat,time,t", "xy-v"), ("x,y,n,", "xyv"),
    (",y,x,t", "-yxv"), ("temp,site_lat,site_lon", "vyx"), ("v,station_y,station_x", "vyx"),
    ("v,lat_wgs,lon_wgs", "vyx"),
])
def test_names_of_columns(tmp_path, caplog, header, order):
    with caplog.at_level("INFO", logger="sparsefield"):
        found = read(tmp_path, table(header, order))
    assert [row[:2] + row[-1:] for row in rows(found)] == ROWS
    assert "x = " in caplog.text and "y = " in caplog.text and "value" in caplog.text


@pytest.mark.parametrize("header, order, options, words", [
    ("across,along,t", "xyv", {}, "which are x and y? give --x and --y"),
    ("distance_m,depth_m,t", "xyv", {}, "give --x and --y"),
    ("v,coords.x1,coords.x2", "vxy", {}, "--x and --y"),
    ("x,y,site_lon,site_lat,v", "xyxyv", {}, "(x, y) or (site_lon, site_lat)"),
    ("lat,north_side,t", "yxv", {}, "give --x and --y"), ("x,x,y,v", "xxyv", {}, "may be"),
    ("x_wind,y_wind,v", "xyv", {}, "give --x and --y"), ("v,x_sd,y", "vxy", {}, "give --x and --y"),
    ("rot_lon,grid_lat,v", "xyv", {"lonlat": True}, "rotated grid"),
    ("x,y,v,v", "xyvv", {}, "'v' is there 2 times"),
    ("x,y,v", "xyv", {"x": "9"}, "--x 9 is none of them"),
    ("x,y,v,v", "xyvv", {"value": ["v"]}, "--value v is 2 of them"),
    ("x,y,v", "xyv", {"value": ["x"]}, "give --x and --y"),
    ("x,y,v", "xyv", {"x": "v", "y": "v"}, "columns of their own"),
    ("a,b", "xy", {}, "2 column(s) (a, b)"), ("a,b,n,t", "xy-v", {"x": "a"}, "--x and --y"),
    ("x,y,noise_sd", "xyv", {}, "no value column is left"),
    ("x,y,t", "xyv", {"noise_sd": "t"}, "no value column is left"),
])
def test_columns_that_are_not_clear_are_refused(tmp_path, header, order, options, words):
    with pytest.raises(UserError) as refused:
        read(tmp_path, table(header, order), **options)
    assert words in str(refused.value)


@pytest.mark.parametrize("header, order, options", [
    ("x,y,lon,lat,v", "--xyv", {"x": "lon", "y": "lat", "value": ["v"]}),
    ("a,b,c", "vyx", {"x": "3", "y": "2"}), ("a,b,c", "vyx", {"x": "c", "y": "b"}),
    ("v,v,v", "vyx", {"x": "3", "y": "2", "value": ["1"]}), ("", "vyx", {"x": "3", "y": "2"}),
    ("lat,lon,p,T", "yx-v", {"value": ["t"]}), ("lat,place,t", "yxv", {"x": "place"}),
    ("distance,depth,v", "xyv", {"x": "distance", "y": "depth"}),
])
def test_columns_may_be_chosen(tmp_path, header, order, options):
    assert rows(read(tmp_path, table(header, order), **options)) == ROWS


WRITTEN = {
    "tabs": table("x\ty\tv", separator="\t"), "semicolons": table("x;y;v", separator=";"),
    "several spaces": "x    y     v\n3.0   50.0  11.5\n  4.0   51  12\n5   52.5     13  \n",
    "bars": table("x|y|v", separator="|"), "spaces after commas": table("x, y, v", separator=", "),
    "a comma after each line": table("x,y,v").replace("\n", ",\n"),
    "a comma after each line but the header":
        table("x,y,v").replace("\n", ",\n").replace("v,", "v"),
    "Windows": table("x,y,v").replace("\n", "\r\n"),
    "old Macintosh": table("x,y,v").replace("\n", "\r"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + table("x,y,v").encode(),
    "UTF-16": table("x,y,Höhe").encode("utf-16"), "Latin-1": table("x,y,Höhe °C").encode("latin-1"),
    "separators after the header": table("x,y,v,,"),
    "# in names of stations": "station,x,y,v\nSt #3,3,50,11.5\nMy #4,4,51,12\nB,5,52.5,13\n",
    "# in a header": table("Sample #,x,y,v", "-xyv"),
    "words in the first row": "3,50,Bergen,11.5\n4,51,Oslo,12\n5,52.5,Å,13\n",
    "gzip by another name": gzip.compress(table("x,y,v").encode()),
    "comments": "# made up\n" + table("x,y,v") + "# the end\n",
    "percent signs": "% station data\n" + table(""),
    "blank lines": "\n\n" + table("x,y,v").replace("\n", "\n\n"),
    "quotes": '"x","y","v"\n' + "".join('"{}","{}","{}"\n'.format(*row) for row in ROWS),
    "scientific": "x,y,v\n3e0,5.0E+1,1.15e1\n4,51,12\n5,52.5,13\n",
    "words in another column": "x,y,place,v\n3,50,Bergen,11.5\n4,51,Oslo,12\n5,52.5,Å,13\n",
    "dates in another column": "x,y,day,v\n3,50,2024-01-01,11.5\n4,51,2024-01-02,12\n"
                               "5,52.5,2024-01-03,13\n",
    "missing entries": table("x,y,v") + "6,53,\n6,53,NA\n6,,3\n6,53,-\n",
    "an index of pandas": ",x,y,v\n0,3,50,11.5\n1,4,51,12\n2,5,52.5,13\n",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing(tmp_path, name):
    assert rows(read(tmp_path, WRITTEN[name])) == ROWS


@pytest.mark.parametrize("content", [
    table("x;y;v", separator=";"), table("x\ty\tv", separator="\t"), table("", separator=";"),
    table("", separator="  "), '"x";"y";"v"\n' + table("", separator=";"),
])
def test_decimal_commas_by_a_flag(tmp_path, content):
    content = content.replace(".", ",")
    assert rows(read(tmp_path, content, decimal=",")) == ROWS
    with pytest.raises(UserError, match="give --decimal ,"):
        read(tmp_path, content)


@pytest.mark.parametrize("header, options, is_said", [
    ("x,y,t,t_std", {}, True), ("x,y,value_stderr,value", {}, True),
    ("x,y,t,t_std", {"noise_sd": "t_std"}, False), ("x,y,t,t_std", {"value": ["t"]}, False),
    ("x,y,t,u", {}, False),
])
def test_an_uncertainty_is_no_value_silently(tmp_path, caplog, header, options, is_said):
    read(tmp_path, f"{header}\n1,2,3,4\n2,3,5,6\n4,4,4,5\n", **options)
    assert ("is taken as a value" in caplog.text) == is_said


@pytest.mark.parametrize("name, values, is_said", [
    ("wind_direction", (1, 359, 350, 12), True), ("wdir", (1, 359, 350, 12), True),
    ("Azimuth (deg)", (-170, 175, 160, -100), True), ("direction", (170, 190, 160, 200), False),
    ("t", (1, 359, 350, 12), False), ("temp_qc", (1, 4, 1, 1), "flags or classes"),
    ("water_quality", (1, 4, 1, 1.5), False), ("landCover", (11, 42, 21, 30), "flags or classes"),
])
def test_directions_across_north_flags_and_classes_are_said(tmp_path, caplog, name, values,
                                                            is_said):
    rows = "".join(f"{k},{k**2},{value}\n" for k, value in enumerate(values, start=1))
    read(tmp_path, f"x,y,{name}\n{rows}")
    assert (f"looks like {is_said}" in caplog.text if isinstance(is_said, str) else
            ("looks like a direction" in caplog.text) == is_said)


@pytest.mark.parametrize("lon, lat", [(1130.5, 5207.4), (1.2e6, 6.8e6), (115e6, 52e6)])
def test_latitudes_that_are_no_degrees_are_refused(tmp_path, lon, lat):
    rows = "".join(f"{lon + k},{lat + k**2},{k}\n" for k in range(6))
    with pytest.raises(UserError, match="are no degrees"):
        read(tmp_path, f"lon,lat,t\n{rows}")
    read(tmp_path, f"lon,lat,t\n{rows}", x="lon", y="lat")


@pytest.mark.parametrize("place, is_said", [
    ((512_000, 5_500_000), True), ((521, 5), True), ((30, 30), False)])
def test_places_far_from_all_others_are_said(tmp_path, caplog, place, is_said):
    rows = "".join(f"{k},{k**2 % 11},{k}\n" for k in range(12))
    read(tmp_path, f"x,y,t\n{rows}{place[0]},{place[1]},3\n")
    assert (f"1 of 13 rows have x from {place[0]}" in caplog.text) == is_said


@pytest.mark.parametrize("zones, is_said", [("32 33", True), ("32 32", False)])
def test_several_zones_are_said(tmp_path, caplog, zones, is_said):
    first, last = zones.split()
    rows = f"{first},4e5,5.2e6,1\n{last},5e5,5.3e6,2\n{first},6e5,5.4e6,3\n"
    found = read(tmp_path, f"utm_zone,easting,northing,v\n{rows}")
    assert found.names == ("v",)
    assert ("utm_zone has 2 different entries" in caplog.text) == is_said


@pytest.mark.parametrize("kinds, is_said", [("pm25 no2", True), ("no2 no2", False)])
def test_values_of_several_kinds_are_said(tmp_path, caplog, kinds, is_said):
    first, last = kinds.split()
    read(tmp_path, f"lon,lat,parameter,value\n5,50,{first},1\n6,51,{last},7\n7,50,{first},2\n")
    assert ("parameter has 2 different entries" in caplog.text) == is_said


@pytest.mark.parametrize("value, count, low, words", [
    (-1, 9, -2.5, ""), (-1, 2, 0.5, ""), (0, 9, 12, "0 stands in"), (0, 9, 0.5, "")])
def test_values_that_repeat_at_the_end_of_others(tmp_path, caplog, value, count, low, words):
    values = np.concatenate([np.full(count, value), low + np.random.default_rng(0).uniform(
        0, 6, 190)])
    frame = pandas.DataFrame(PLACES[:len(values)], columns=["x", "y"]).assign(t=values)
    read(tmp_path, frame.to_csv(index=False))
    assert words in caplog.text if words else "WARNING" not in caplog.text


def test_series_of_stations_are_not_dropped_silently(tmp_path, caplog):
    xarray.Dataset({"alt": ("station", [1.0, 2, 4]), "lon": ("station", [5.0, 6, 7]),
                    "lat": ("station", [50.0, 52, 51]),
                    "temp": (("station", "time"), np.ones((3, 8)))}).to_netcdf(
        tmp_path / "s.nc", engine="scipy")
    read_measurements(str(tmp_path / "s.nc"), channels=1)
    assert "temp (station 3, time 8) left out: a place has one value here" in caplog.text


@pytest.mark.parametrize("top", ["", ",5.0,5.2,5.4,5.6,5.8\n", "lat,5.0,5.2,5.4,5.6,5.8\n"])
def test_a_matrix_is_no_list(tmp_path, top):
    rows = "".join(f"{50 + k},1,{k},3,4,5\n" for k in range(6))
    with pytest.raises(UserError, match="a matrix of a field"):
        read(tmp_path, top + rows)


@pytest.mark.parametrize("count, shift, is_said", [
    (20, 273.15, True), (2, 273.15, True), (0, 0, False)])
def test_stations_in_another_unit_are_said(tmp_path, caplog, count, shift, is_said):
    values = np.random.default_rng(1).normal(12, 5, 200) + shift * (np.arange(200) < count)
    frame = pandas.DataFrame(PLACES, columns=["x", "y"]).assign(t=values)
    read(tmp_path, frame.to_csv(index=False))
    assert (f"{count} of 200 rows have t from 2" in caplog.text) == is_said


@pytest.mark.parametrize("last, is_said", [(900, True), (40, False)])
def test_a_total_below_the_values_is_said(tmp_path, caplog, last, is_said):
    rows = "".join(f"{k},{k**2 % 11},{10 + k % 5}\n" for k in range(12))
    read(tmp_path, f"x,y,t\n{rows}5,6,{last}\n")
    assert ("1 of 13 rows have t from 900 to 900, all others 10 to 14" in caplog.text) == is_said


def test_datetimes_of_parquet_are_no_values(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(ROWS, columns=["x", "y", "v"])
    frame["day"] = pandas.date_range("2024-01-01", periods=3)
    frame.to_parquet(tmp_path / "t.parquet")
    found = read_measurements(str(tmp_path / "t.parquet"), channels=1)
    assert rows(found) == ROWS and found.names == ("v",)
    with pytest.raises(UserError, match="is no number"):
        read_measurements(str(tmp_path / "t.parquet"), channels=1, value=["day"])


@pytest.mark.parametrize("content, words", [
    ("", "it is empty"), ("# nothing\n", "it is empty"), ("x,y,v\n", "no measurement"),
    ("x,y,v\n1,2,three\n1,2,4\n", "'three' in column 'v', measurement 1, is no number"),
    ("x,y,v\n1,5,2,5,3,5\n1,5,2,5,3,5\n", "are these decimal commas"),
    ("Data of 2024\nx,y,v\n1,2,3\n2,3,4\n", "the line on top has 3 names (Data, of, 2024)"),
    ("x,y,v\n1,2,3\n4,5,6,7\n", "line 2, saw 4"),
    ("x,y,v\nfar,2,3\n1,2,3\n", "'far' in column 'x', measurement 1, is no number; mend it, put # "
                                 "before its line, choose other columns with --x"),
    ("x,y,v\nm,m,degC\n1,2,3\n2,3,4\n", "'m' in column 'x', measurement 1, is no number"),
    ('x,y,pop\n5.1,300,"1,205"\n5.2,310,"1,906"\n', "'1,205' in column 'pop'"),
    ("lon lat wind speed temp\n1 2 3 4\n2 3 4 5\n", "5 names (lon, lat, wind, speed, temp)"),
    ("# lat lon v\n1 2 3\n2 3 4\n", "'# lat lon v' names columns, and comments are not read"),
    ("sep=;\nx;y;v\n1;2;3\n", "sep="), ("x,y,v\nnan,2,3\n", "no measurement"),
    ("x,y,v # mine\n3,50,11 # noon\n", "is no number"),
    ("x,y,v\n" + "".join(f"{k},{50 + k},{k}\n" for k in range(40, 49)) + 2 * "0,0,7\n",
     "2 places are (0, 0), all others 40 to 48, 90 to 98; leave them out"),
    (table("x,y,v").encode("utf-16-le"), "no text"), ("a\0b", "no text"),
    ("x,y,v\n1,2,-9999\n2,2,-9999\n", "all are -9999, which means: not measured"),
    ("x,y,v\n1,2,3\n1e300,2,4\n1e301,1,2\n", "--missing 1e+301"),
])
def test_refused_with_words(tmp_path, content, words):
    with pytest.raises(UserError, match=r"t\.csv") as refused:
        read(tmp_path, content)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name, words", [
    ("t.xlsx", "a spreadsheet, which is not read here; save the sheet as CSV"),
    ("t.HEIC", "convert it to PNG"), ("t.h5", "HDF5"), ("t.pth", "weights"),
])
def test_kinds_of_files_that_are_not_read_are_named(tmp_path, name, words):
    with pytest.raises(UserError) as refused:
        read(tmp_path, b"whatever", name)
    assert words in str(refused.value)


FEW = "".join(f"{k},{k % 3},{10 + k}\n" for k in range(8))


@pytest.mark.parametrize("extra, options, left", [
    ("30,0,-9999\n40,1,-9999\n", {}, None), ("30,0,-9999\n", {}, None), ("30,0,-999.9\n", {}, None),
    ("30,0,1e30\n40,1,1e30\n", {}, None), ("30,0,9.96921e+36\n", {}, None),
    ("30,0,-32768\n", {}, None),
    ("30,0,100\n", {}, 9), ("30,0,-20\n", {}, 9),  # an outlier
    ("30,0,-9999\n40,2,-9999\n", {"missing": ("-9999",)}, 8),
    ("30,0,-9999\n40,2,1e30\n", {"missing": ("-9999", "1e30")}, 8),
    ("30,0,-9999\n40,2,1e30\n", {"missing": ("-9999",)}, None),
    ("30,0,-9999\n40,2,-9999\n", {"missing": ("none",)}, 10),
    ("30,0,bad\n40,2,bad\n", {"missing": ("bad",)}, 8),
    ("-9999,-9999,5\n", {}, None), ("-9999,-9999,5\n", {"missing": ("-9999",)}, 8),
    ("0,1,0\n", {"missing": ("0",)}, 8),          # not the places at x = 0 or y = 0
    ("-790.2,1,5\n", {"missing": ("-790.2",), "lonlat": True}, 8),  # no longitude
    ("95,1,5\n2,95,5\n", {"missing": ("95",), "lonlat": True}, 9),  # a longitude, no latitude
])
def test_values_that_mean_not_measured(tmp_path, extra, options, left):
    if left is None:
        with pytest.raises(UserError, match=r"stands there . time.*--missing"):
            read(tmp_path, FEW + extra, **options)
    else:
        assert len(read(tmp_path, FEW + extra, **options).values) == left
