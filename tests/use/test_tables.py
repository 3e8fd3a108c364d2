"""Tables of measurements: what is typed, and what becomes x, y and values."""

from __future__ import annotations

import gzip

import pytest

import reconstruct as script
from sparsefield import cli
from sparsefield.errors import UserError
from sparsefield.use.read import read_measurements

ROWS = [(3.0, 50.0, 11.5), (4.0, 51.0, 12.0), (5.0, 52.5, 13.0)]  # x, y, value


def read(path, content, name="t.csv", **options):
    path = path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_measurements(str(path), channels=1, **options)


def rows(found):
    return [(*c, *v) for c, v in zip(found.coords.tolist(), found.values.tolist())]


def table(header: str, order: str = "xyv", separator: str = ",") -> str:
    """ROWS under a header, with the columns in another order; - is a column of ones."""
    lines = [separator.join("1" if letter == "-" else str(row["xyv".index(letter)])
                            for letter in order) for row in ROWS]
    return "\n".join([header, *lines] if header else lines) + "\n"


@pytest.mark.parametrize("header, order", [
    ("x,y,v", "xyv"), ("", "xyv"), ("X,Y,V", "xyv"), ("temperature,x_km,y_km", "vxy"),
    ("latitude_deg,longitude_deg,t", "yxv"), ("Lat (deg),Lon (deg),t", "yxv"),
    ("northing_m,easting_m,t", "yxv"), ("lat,lng,t", "yxv"), ("LAT,LONG,T", "yxv"),
    ("decimalLatitude,decimalLongitude,t", "yxv"), ("y [m],x [m],t", "yxv"),
    ("Latitude °N,Longitude °E,t", "yxv"), ("gps_lat,gps_lon,t", "yxv"), ("y.m,x.m,t", "yxv"),
    ("coord_y,coord_x,t", "yxv"), ("Northing,Easting,t", "yxv"), ("UTM_N,UTM_E,t", "yxv"),
    ("lat_wgs84,lon_wgs84,t", "yxv"), ("t,LatDeg,LonDeg", "vyx"),
    ('"Lat, deg","Lon, deg",t', "yxv"),
    ("Breite (°),Länge (°),t", "yxv"), ("Hochwert,Rechtswert,t", "yxv"),
    ("distance_m,depth_m,t", "xyv"), ("depth_m,distance_m,t", "yxv"), ("t,z,x", "vyx"),
    ("across,along_side,t", "xyv"),  # no known name: the order
    (",y,x,t", "-yxv"), ("id,lat,lon,t", "-yxv"), ("station,t,lat,lon", "-vyx"),
    ("lon,lat,time,t", "xy-v"), ("lon,lat,t,", "xyv"), ("row,col,t", "yxv"),
    ("N,E,Z", "yxv"), ("E,N,Z", "xyv"), ("N (m),E (m),H", "yxv"), ("N_m,E_m,Z", "yxv"),
    ("mN,mE,Au", "yxv"), ("P,N,E,Z", "-yxv"), ("P,N,E,Z,D", "-yxv-"), ("Pt,N,E,Z", "-yxv"),
    ("Probe,Rechts,Hoch,Zn", "-xyv"), ("Point No.,Northing,Easting,Elev.", "-yxv"),
    ("Nord,Ost,t", "yxv"), ("HW,RW,t", "yxv"), ("ycoord,xcoord,t", "yxv"),
    ("POINT_Y,POINT_X,t", "yxv"), ("x,y,n,", "xyv"), ("across,along_side,n", "xyv"),
    ("x,z,n", "xyv"), ("id,across,along_side,t", "-xyv"),
])
def test_names_of_columns(tmp_path, caplog, header, order):
    with caplog.at_level("INFO", logger="sparsefield"):
        found = read(tmp_path, table(header, order))
    assert rows(found) == ROWS
    assert "x = " in caplog.text and "y = " in caplog.text and "value = " in caplog.text


@pytest.mark.parametrize("header, order, options, words", [
    ("x,y,lon,lat,v", "xyxyv", {}, "(x, y) or (lon, lat)"),
    ("lat,north_side,t", "yxv", {}, "lat is one axis, and the other is not clear"),
    ("x,x,y,v", "xxyv", {}, "x and y may be"), ("x,y,v,v", "xyvv", {}, "'v' is there 2 times"),
    ("x,y,v", "xyv", {"value": ["temp"]}, "--value temp is none of them"),
    ("x,y,v", "xyv", {"x": "9"}, "--x 9 is none of them"),
    ("x,y,v,v", "xyvv", {"value": ["v"]}, "--value v names 2 of them"),
    ("x,y,v", "xyv", {"value": ["x"]}, "y is one axis"),
    ("x,y,v", "xyv", {"x": "v", "y": "v"}, "columns of their own"),
    ("a,b", "xy", {}, "2 column(s) (a, b)"),
    ("x1,y1,x_err,t", "xy-v", {"x": "x1"}, "the other is not clear"),
    ("a,b,n,t", "xy-v", {"x": "a"}, "the other is not clear"),
    ("lat,E,N,t", "yxyv", {}, "lat is one axis, and the other is not clear"),
    ("a,b,c,d", "xyv-", {}, "no name is known as that of an axis; give --x and --y"),
    ("a,b,c,d", "xyv-", {"value": ["c"]}, "no name is known as that of an axis"),
    ("x,y,noise_sd", "xyv", {}, "no value column is left beside x = x, y = y and the noise's sd"),
    ("x,y,t", "xyv", {"noise_sd": "t"}, "no value column is left"),
    ("a,b,noise_sd", "xyv", {"noise_sd": "0.1"}, "no value column is left"),
])
def test_columns_that_are_not_clear_are_refused(tmp_path, header, order, options, words):
    with pytest.raises(UserError) as refused:
        read(tmp_path, table(header, order), **options)
    assert words in str(refused.value)


@pytest.mark.parametrize("header, order, options", [
    ("x,y,lon,lat,v", "--xyv", {"x": "lon", "y": "lat", "value": ["v"]}),
    ("a,b,c", "vyx", {"x": "3", "y": "2"}), ("a,b,c", "vyx", {"x": "c", "y": "b"}),
    ("v,v,v", "vyx", {"x": "3", "y": "2", "value": ["1"]}), ("", "vyx", {"x": "3", "y": "2"}),
    ("lat,lon,p,t", "yx-v", {"value": ["t"]}), ("lat,lon,p,T (degC)", "yx-v", {"value": ["t"]}),
    ("lat,place,t", "yxv", {"x": "place"}), ("a,b,c,d", "-xyv", {"x": "b", "y": "c", "value": "d"}),
    ("id,a,b,d", "-xyv", {"value": ["d"]}),
])
def test_columns_may_be_chosen(tmp_path, header, order, options):
    assert rows(read(tmp_path, table(header, order), **options)) == ROWS


WRITTEN = {
    "tabs": table("x\ty\tv", separator="\t"),
    "semicolons": table("x;y;v", separator=";"),
    "several spaces": "x    y     v\n3.0   50.0  11.5\n  4.0   51  12\n5   52.5     13  \n",
    "bars": table("x|y|v", separator="|"),
    "spaces after commas": table("x, y, v", separator=", "),
    "a comma after each line": table("x,y,v", separator=",").replace("\n", ",\n"),
    "a comma after each line but the header":
        table("x,y,v").replace("\n", ",\n").replace("v,", "v"),
    "semicolons and decimal commas": table("x;y;v", separator=";").replace(".", ","),
    "tabs and decimal commas": table("x\ty\tv", separator="\t").replace(".", ","),
    "spaces and decimal commas": table("", separator="  ").replace(".", ","),
    "decimal commas without header": table("", separator=";").replace(".", ","),
    "commas and decimal commas in quotes": '"x","y","v"\n' + "".join(
        '"{}","{}","{}"\n'.format(*row) for row in ROWS).replace(".", ","),
    "commas and decimal commas in quotes, no header": "".join(
        '"{}","{}","{}"\n'.format(*row) for row in ROWS).replace(".", ","),
    "three decimals after commas": "x;y;v\n3,000;50,000;11,500\n4,000;51,000;12,000\n"
                                   "5,000;52,500;13,000\n",
    "Excel's sep=;": "sep=;\r\n" + table("x;y;v", separator=";").replace(".", ","),
    "Excel's sep=,": '"sep=,"\n' + table("x,y,v"),
    "sep= tab": "SEP=\t\n" + table("x\ty\tv", separator="\t"),
    "sep=^": "sep=^\n" + table("x^y^v", separator="^"),
    "Windows": table("x,y,v").replace("\n", "\r\n"),
    "old Macintosh": table("x,y,v").replace("\n", "\r"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + table("x,y,v").encode(),
    "UTF-16": table("x,y,Höhe").encode("utf-16"),
    "UTF-16 without its mark": table("x,y,v").encode("utf-16-le"),
    "Latin-1": table("x,y,Höhe °C").encode("latin-1"),
    "an empty last column": table("x,y,v,note").replace("\n", ",\n").replace("e,\n", "e\n"),
    "separators after the header": table("x,y,v,,"),
    "spaces after the header": table("x y v  ", separator=" "),
    "remarks": "x,y,v # made up, by me\n3,50,11.5 # noon, sun\n4,51,12 # noon\n5,52.5,13 #\n",
    "remarks after spaces": "x y v # made up, by me\n3 50 11.5 # a, b\n4 51 12\n5 52.5 13 # c, d\n",
    "# in names of stations": "station,x,y,n,v\nSt #3,3,50,St #3,11.5\nMy #4,4,51,St #4,12\n"
                              "St #5,5,52.5,a,13 # noon, sun\n",
    "# in quotes": 'x,y,v,n\n3,50,11.5,"St #3"\n4,51,12,"St #4, b"\n5,52.5,13,c\n',
    "# in a header": table("Sample #,x,y,v", "-xyv"),
    "# in every row": "3,50,St #3,11.5\n4,51,St #4,12\n5,52.5,St #5,13\n",
    "words in the first row": "3,50,Bergen,11.5\n4,51,Oslo,12\n5,52.5,Å,13\n",
    "names in one comment of several": "# lat lon t\n# x and y in degrees\n# x y\n" + table(
        "", "yxv", separator=" "),
    "gzip by another name": gzip.compress(table("x,y,v").encode()),
    "comments": "# made up\n" + table("x,y,v") + "# the end\n",
    "numpy.savetxt's header": "# lat lon t\n" + table("", "yxv", separator=" "),
    "percent signs": "% station data\n% lat,lon,t\n" + table("", "yxv"),
    "blank lines": "\n\n" + table("x,y,v").replace("\n", "\n\n"),
    "quotes": '"x","y","v"\n' + "".join('"{}","{}","{}"\n'.format(*row) for row in ROWS),
    "scientific": "x,y,v\n3e0,5.0E+1,1.15e1\n4,51,12\n5,52.5,13\n",
    "words in another column": "x,y,place,v\n3,50,Bergen,11.5\n4,51,Oslo,12\n5,52.5,Å,13\n",
    "missing entries": table("x,y,v") + "6,53,\n6,53,NA\n6,,3\n6,53,-\n",
    "an index of pandas": ",x,y,v\n0,3,50,11.5\n1,4,51,12\n2,5,52.5,13\n",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing(tmp_path, name):
    assert rows(read(tmp_path, WRITTEN[name])) == ROWS


@pytest.mark.parametrize("content, units", [
    (table("x,y,v").replace("v\n", "v\nm,m,degC\n"), "degC"),
    (table("x y v", separator=" ").replace("v\n", "v\n[m] [m] [degC]\n"), "degC"),
    (table("name,x,y,v", "-xyv").replace("v\n", "v\n,m,m,-\n"), None),
    (table("# x,y,v").replace("v\n", "v\nm,m,degC\n"), "degC"),
    ("x;y;v\nm;m;m/s\n" + table("", separator=";").replace(".", ","), "m/s"),
])
def test_a_row_of_units(tmp_path, caplog, content, units):
    with caplog.at_level("INFO", logger="sparsefield"):
        found = read(tmp_path, content)
    assert rows(found) == ROWS and found.units == units
    assert "the row under the names is taken as units: m, m" in caplog.text


def test_no_value_column_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(table("x,y,temp"))
    given = [str(tmp_path / "t.csv"), "--noise_sd", "temp", "--out", str(tmp_path / "out")]
    assert cli.run(lambda: script.main(given)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "no value column is left" in said and (
        said.count("\n") == 1)


def test_packed_by_gzip(tmp_path):
    assert rows(read(tmp_path, gzip.compress(table("x,y,v").encode()), "t.csv.gz")) == ROWS


@pytest.mark.parametrize("content, words", [
    ("", "it is empty"), ("# nothing\n", "it is empty"), ("x,y,v\n", "no measurement"),
    ("x,y,v\n1,2,three\n1,2,4\n", "'three' in column 'v', measurement 1, is no number"),
    ("x,y,v\n1,5,2,5,3,5\n1,5,2,5,3,5\n", "are these decimal commas"),
    ("Data of 2024\nx,y,v\n1,2,3\n2,3,4\n", "the line on top 1"),
    ("x,y,v\n1,2,3\n4,5,6,7\n", "measurement 2 has 4 entries"),
    ("x,y,v\nfar,2,3\n1,2,3\n", "'far' in column 'x', measurement 1, is no number; mend it, put # "
                                 "before its line, choose another column with --x"),
    ("x,y,v\nx,y,v\n1,2,3\n", "'x' in column 'x', measurement 1"),
    ("x y v\nm m deg C\n1 2 3\n", "measurement 1 has 4 entries, the line on top 3"),
    ("x,y,v\nm,m,degC\nmean,mean,mean\n1,2,3\n", "'mean' in column 'x'"),
    ("x;y;pop\n5.12;1.64;966\n1.44;3.87;1,205\n",
     "both decimal points (5.12) and commas in numbers (1,205): say numbers in one way"),
    ("x\ty\tpop\n5.12\t1.64\t966\n1.44\t3.87\t1,205\n", "both decimal points"),
    ("x;y;pop\n" + "5,1;1,6;7\n" * 300 + "5,1;1,6;1.205\n", "both decimal points (1.205)"),
    ('x,y,pop\n5.1,300,"1,205"\n5.2,310,"1,906"\n', "both decimal points"),
    ('x,y,pop\n500,300,"1,205"\n510,310,"1,906"\n', "1,205 may be 1205 or 1.205"),
    ("x;y;pop\n5;1;966\n1;3;1,205\n", "1,205 may be 1205 or 1.205"),
    ("lon lat wind speed temp\n1 2 3 4\n2 3 4 5\n", "the line on top has 5 names (lon, lat, wind, "
                                                  "speed, temp), no measurement more than 4"),
    ("x [m] y [m] soil temp\n1 2 3 4\n2 3 4 5\n", "a name of two words as one"),
    ("Lat, deg,Lon, deg,t\n1,2,3\n2,3,4\n", "5 names"),
    ("# lat lon wind speed\n1 2 3\n2 3 4\n", "names y before x, and has 4 words for 3 columns"),
    (gzip.compress(b"x,y,v\n1,2,3\n", mtime=0)[:20], "no readable gzip"),
    ("x,y,v\n1,2,1 013.5\n1,3,4\n", "'1 013.5'"),
    (b"PK\x03\x04 a workbook by another name", "a spreadsheet"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "NetCDF"), (b"\x89PNG\r\n" + bytes(50), "name it .png"),
    (bytes(range(256)) * 4, "no text"), ("x,y,v\nnan,2,3\n", "no measurement"),
    ("x,y,v\n1,2,-9999\n2,2,-9999\n", "all are -9999, which means: not measured"),
    ("x,y,v\n1,2,3\n1e300,2,4\n1e301,1,2\n", "--missing 1e+301"),
])
def test_refused_with_words(tmp_path, content, words):
    with pytest.raises(UserError, match=r"t\.csv") as refused:
        read(tmp_path, content)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name, words", [
    ("t.xlsx", "a spreadsheet, which is not read here; save the sheet as CSV"),
    ("t.ods", "a spreadsheet"), ("t.heic", "an HEIC picture"), ("t.HEIC", "convert it to PNG"),
    ("t.nc", "NetCDF"), ("t.h5", "HDF5"), ("t.mat", "another program's"), ("t.zip", "unpack it"),
    ("t.geojson", "export its points"), ("t.pdf", "a drawing"), ("t.cr2", "raw"),
    ("t.pth", "weights"),
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
    ("30,0,500\n40,2,500\n", {}, None),           # a lone extreme that is repeated
    ("30,0,100\n", {}, 9), ("30,0,-20\n", {}, 9),  # an outlier
    ("30,0,-9999\n40,2,-9999\n", {"missing": ("-9999",)}, 8),
    ("30,0,-9999\n40,2,1e30\n", {"missing": ("-9999", "1e30")}, 8),
    ("30,0,-9999\n40,2,1e30\n", {"missing": ("-9999",)}, None),
    ("30,0,-9999\n40,2,-9999\n", {"missing": ("none",)}, 10),
    ("30,0,bad\n40,2,bad\n", {"missing": ("bad",)}, 8),
    ("-9999,-9999,5\n", {}, None), ("-9999,-9999,5\n", {"missing": ("-9999",)}, 8),
])
def test_values_that_mean_not_measured(tmp_path, extra, options, left):
    if left is None:
        with pytest.raises(UserError, match=r"stands there . time.*--missing"):
            read(tmp_path, FEW + extra, **options)
    else:
        assert len(read(tmp_path, FEW + extra, **options).values) == left
