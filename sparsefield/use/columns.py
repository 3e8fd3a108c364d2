"""Which columns of a table are x, y and values: the one list of names that are known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsefield.errors import UserError

# Names of x and of y, without units, in pairs that belong together.
PAIRS = (
    ({"x", "xcoord", "coordx"}, {"y", "ycoord", "coordy"}),
    ({"lon", "long", "lng", "longitude", "longitud", "länge", "laenge", "längengrad", "lons",
      "longitudes"},
     {"lat", "latitude", "latitud", "breite", "breitengrad", "lats", "latitudes"}),
    ({"easting", "eastings", "east", "utme", "utmx", "rechtswert", "rechts", "ostwert"},
     {"northing", "northings", "north", "utmn", "utmy", "hochwert", "hoch", "nordwert"}),
    ({"column", "col"}, {"row", "line"}),
)
# Names that may be axes where no pair above is there: of a section through the sea ...
SECTION = (
    {"x", "distance", "dist", "range", "offset", "chainage", "along"},
    {"z", "depth", "elevation", "altitude", "height", "level"},
)
# ... and, where no name above stands alone, of surveyors; each means much else by itself.
SURVEY = ({"e", "est", "este", "leste", "ost", "oost", "rw"},
          {"n", "nord", "norte", "noord", "hw"})
GLOBE = PAIRS[1][1]  # names of latitude
# Words in a name that say in what or how it was measured, and not what it is.
UNITS = {
    "m", "km", "cm", "mm", "nm", "ft", "mi", "metre", "metres", "meter", "meters", "kilometre",
    "kilometres", "kilometer", "kilometers", "deg", "degree", "degrees", "dd", "decimal", "rad",
    "radians", "px", "pixel", "pixels", "e", "n", "w", "s", "degn", "dege", "wgs84", "epsg", "4326",
    "gps", "geo", "utm", "coord", "coords", "coordinate", "coordinates", "pos", "position",
    "point", "centroid", "grid", "osgb", "bng", "mga", "lambert", "lambert93", "lv95", "ch1903",
    "nad83", "etrs89", "gk",
}
# Columns that say which, when or in what order; values only where nothing else is there.
LABELS = {"", "id", "index", "idx", "fid", "objectid", "no", "nr", "number", "station", "stationid",
          "site", "siteid", "name", "time", "date", "datetime", "timestamp", "year", "month", "day",
          "hour", "minute", "second", "unnamed0", "point", "pt", "pnt", "ptid", "ptno", "pointid",
          "pointno", "punkt", "punktnr", "punktnummer", "sample", "sampleid", "sampleno", "probe",
          "probenr", "probennummer"}
PNEZD = ("p", "n", "e", "z", "d")  # point number, axes, height, description: what surveyors export
NOISE = "noisesd"  # the bare name of a column that holds the sd of the noise
COLOURS = ({"red", "r"}, {"green", "g"}, {"blue", "b"})


@dataclass(frozen=True)
class Columns:
    """Places of the columns, from 0."""

    x: int
    y: int
    values: tuple[int, ...]


def bare(name: str) -> str:
    """A column's name without units and separators: "Lat (deg)", "lat_deg" and "LAT" are lat."""
    text = re.sub(r"[(\[{].*?[)\]}]", " ", str(name))
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
    words = re.findall(r"[^\W_]+", text)
    telling = [word for word in words if word not in UNITS]
    return "".join(telling or _axis_letter(words) or words)


def _axis_letter(words: Sequence[str]) -> list[str]:
    """The e or n of "N_m" and "UTM_N", of units of which one may be an axis."""
    letters = [word for word in words if word in ("e", "n")]
    utm = ["utm"] if "utm" in words else []
    return utm + letters if len(letters) == 1 else []


def axes_in(
    names: Sequence[str], pairs: Sequence[tuple[set[str], set[str]]] = (*PAIRS, SECTION, SURVEY)
) -> tuple[int, int] | None:
    """Places of the first names of x and y that belong together, None where there are none."""
    bares = [bare(name) for name in names]
    for pair in pairs:
        x, y = (next((k for k, name in enumerate(bares) if name in known), None) for known in pair)
        if None not in (x, y):
            return x, y
    return None


def are_colours(names: Sequence[str]) -> bool:
    """Whether three names are those of red, green and blue."""
    return len(names) == 3 and all(bare(n) in known for n, known in zip(names, COLOURS))


def choose_columns(
    source: str, names: Sequence[str], x: str | None, y: str | None, value: Sequence[str] | None,
    has_header: bool = True, noise: int | None = None, words: Sequence[int] = (),
) -> Columns:
    """Places of x, y and values.

    Args:
        noise: place of the column that holds the noise's sd, and nothing else.
        names: of all columns, in order. x, y, value: what the user chose, names or numbers from 1.
        has_header: False: the names are made up, and the order decides.
        words: places of columns without a number.
    Raises:
        UserError: no such column, several of a name, several that may be meant, none that is
            known as an axis beside more than a value, or too few.
    """
    seen = f"{source}: columns {', '.join(map(str, names))}"
    if len(names) < 3:
        raise UserError(f"{source}: {len(names)} column(s) ({', '.join(map(str, names))}); give x, "
                        "y and one or more values in every row")
    chosen = {"x": None if x is None else _find(seen, names, x, "--x"),
              "y": None if y is None else _find(seen, names, y, "--y")}
    values = None if value is None else tuple(_find(seen, names, v, "--value") for v in value)
    own = [place for place in (*chosen.values(), *(values or ()), noise) if place is not None]
    if len(set(own)) < len(own) or values == ():
        raise UserError(f"{seen}: x, y and each value must be columns of their own; choose with "
                        "--x, --y, --value and --noise_sd")
    if None in chosen.values():
        found = _by_name(seen, names, set(own), chosen, words, 3 if values is None else 2) if (
            has_header) else _by_order(names, set(own), chosen)
        chosen = {axis: place if place is not None else auto
                  for (axis, place), auto in zip(chosen.items(), found)}
    axes = chosen["x"], chosen["y"]
    values = _others(seen, names, axes, noise) if values is None else values
    if len({*axes, *values}) < 2 + len(values):
        raise UserError(f"{seen}: which are x and y? give --x and --y")
    if not values:
        raise UserError(f"{seen}: no value column is left beside x = {names[axes[0]]}, y = "
                        f"{names[axes[1]]} and the noise's sd; give a table with one")
    return Columns(*axes, values)


def _by_order(
    names: Sequence[str], taken: set[int], chosen: dict[str, int | None]
) -> tuple[int, int]:
    """Without a header: the first two columns that nothing else was said of."""
    free = iter([k for k in range(len(names)) if k not in taken] + [0, 0])
    return tuple(next(free) if place is None else place for place in chosen.values())


def find_noise(source: str, names: Sequence[str], wanted: str | None) -> int | None:
    """Place of the column with the noise's sd: the one that is wanted, or one named noise_sd.

    Raises:
        UserError: the wanted one is not there.
    """
    if wanted is not None:
        seen = f"{source}: columns {', '.join(map(str, names))}"
        return _find(seen, names, wanted, "--noise_sd")
    places = [k for k, name in enumerate(names) if bare(name) == NOISE]
    return places[0] if len(places) == 1 else None


def _find(seen: str, names: Sequence[str], wanted: str, flag: str) -> int:
    """A column by its name, its name without units, or its number from 1."""
    for same in (lambda n: str(n).strip() == wanted.strip(),
                 lambda n: str(n).strip().lower() == wanted.strip().lower(),
                 lambda n: bare(n) == bare(wanted) != ""):
        places = [k for k, name in enumerate(names) if same(name)]
        if len(places) > 1:
            raise UserError(f"{seen}: {flag} {wanted} names {len(places)} of them; give its "
                            f"number, from 1 to {len(names)}")
        if places:
            return places[0]
        if wanted.strip().isdecimal() and 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
    raise UserError(f"{seen}: {flag} {wanted} is none of them; give a name, or a number from 1 to "
                    f"{len(names)}")


def _by_name(
    seen: str, names: Sequence[str], taken: set[int], chosen: dict[str, int | None],
    words: Sequence[int], wanted: int,
) -> tuple[int, int]:
    """x and y by their names; where none is known, the first two of as many as are wanted."""
    free = {k: bare(name) for k, name in enumerate(names) if k not in taken}

    def candidates(known: set[str], axis: str) -> list[int]:
        if chosen[axis] is not None:
            return [chosen[axis]]
        return [k for k, name in free.items() if name in known]

    def whole(pairs: Sequence[tuple[set[str], set[str]]]) -> list[tuple[int, int]]:
        return sorted({(i, j) for xs, ys in pairs
                       for i in candidates(xs, "x") for j in candidates(ys, "y")})

    fixed = [axis for axis, place in chosen.items() if place is not None]
    lonely = [names[k] for xs, ys in PAIRS for k in candidates(xs, "x") + candidates(ys, "y")
              if k not in taken]
    options = whole(PAIRS) or whole(
        [SECTION] if lonely or fixed else [SECTION, SURVEY])
    if len(options) == 1:
        return options[0]
    if options:
        what = " or ".join(f"({names[i]}, {names[j]})" for i, j in options)
        raise UserError(f"{seen}: x and y may be {what}; say which with --x and --y")
    if lonely or fixed:
        which = f"{lonely[0]} is one axis" if lonely else f"--{fixed[0]} is one axis"
        raise UserError(f"{seen}: {which}, and the other is not clear; give --x and --y")
    if len(set(free)) < 2:
        raise UserError(f"{seen}: which are x and y? give --x and --y")
    return _first_two(seen, free, words, wanted)


def _first_two(
    seen: str, free: dict[int, str], words: Sequence[int], wanted: int
) -> tuple[int, int]:
    """The first two columns, where exactly as many have numbers as are wanted, labels or not."""
    numbers = [k for k in free if k not in words]
    for places in ([k for k in numbers if free[k] not in LABELS], numbers):
        if len(places) > wanted:
            raise UserError(f"{seen}: no name is known as that of an axis; give --x and --y")
        if len(places) == wanted:
            return tuple(places[:2])
    return tuple(list(free)[:2])


def _others(
    seen: str, names: Sequence[str], axes: tuple[int, int], noise: int | None = None
) -> tuple[int, ...]:
    """All columns but the axes, the noise and, where there are others, labels."""
    rest = [k for k in range(len(names)) if k not in axes and k != noise]
    bares = tuple(map(bare, names))
    labels = LABELS | {"p", "d"} if bares in (PNEZD, PNEZD[:4]) else LABELS
    telling = [k for k in rest if bares[k] not in labels] or rest
    lowered = [str(names[k]).strip().lower() for k in (*telling, *axes)]
    for name in lowered:
        if lowered.count(name) > 1:
            raise UserError(f"{seen}: {name!r} is there {lowered.count(name)} times; choose with "
                            "--x, --y and --value, by number")
    return tuple(telling)
