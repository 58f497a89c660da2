"""Pictures of a map: one line of text, or an SVG."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from david.recipe.picture import svg_picture, sweeps, text_picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(
    repeat_map: list[int], n_layers: int, scales: list[float] | None = None, title: str = "a title"
) -> ET.Element:
    return ET.fromstring(svg_picture(repeat_map, scales or [1.0] * len(repeat_map), n_layers, title))


def stretches(svg: ET.Element) -> list[ET.Element]:
    return [group for group in svg.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]


def notes(svg: ET.Element) -> list[str | None]:
    return [group.findtext(f"{SVG}title") for group in stretches(svg)]


def places(outline: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each cell of an outline."""
    found = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", outline)
    assert "".join("M{} {}h{}v{}h-{}z".format(*cell, cell[2]) for cell in found) == outline
    return [(x, y, x + wide, y + high) for x, y, wide, high in (map(float, cell) for cell in found)]


def cells(group: ET.Element) -> list[tuple[float, float, float, float]]:
    return places(list(group.iter(f"{SVG}path"))[-1].attrib["d"])


def dashes(svg: ET.Element) -> list[str]:
    return [path.attrib["d"] for path in svg.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]


def texts(svg: ET.Element) -> list[str | None]:
    return [text.text for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("repeat_map", "n_layers", "line"),
    [
        ([0], 1, "▁"),
        ([0, 0, 0], 1, "▁▁▁"),
        ([0, 1], 2, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 0, 7], 8, "█▁█"),
        ([0, 119], 120, "▁█"),
    ],
)
def test_text_picture_has_known_lines(repeat_map: list[int], n_layers: int, line: str) -> None:
    assert text_picture(repeat_map, n_layers) == line


@pytest.mark.parametrize("n_layers", [1, 2, 7, 8, 9, 30, 120])
def test_text_picture_is_one_character_a_visit_and_higher_is_deeper(n_layers: int) -> None:
    deeper = text_picture(range(n_layers), n_layers)
    assert len(deeper) == n_layers
    assert list(deeper) == sorted(deeper)  # the bars ▁ … █ stand in this order in Unicode
    assert len(set(deeper)) == min(n_layers, 8)
    assert text_picture(range(n_layers)[::-1], n_layers) == deeper[::-1]


MAPS = {
    "a base of 12": list(range(12)),
    "a base of 120": list(range(120)),
    "12 visits": [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9],
    "120 visits in two sweeps": [*range(60), *range(60)],
    "120 visits of 60 layers, each twice": [i for layer in range(60) for i in (layer, layer)],
    "120 visits downwards": list(range(120))[::-1],
    "one layer, ever again": [0] * 120,
    "80 layers in windows": [*range(25), *range(16, 41), *range(32, 57), *range(48, 80)],
}


@pytest.mark.parametrize("repeat_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("room", [290.0, 640.0])
def test_all_that_is_drawn_lies_inside_and_every_visit_is_told(repeat_map: list[int], room: float) -> None:
    n_layers = max(repeat_map) + 1
    svg = ET.fromstring(svg_picture(repeat_map, [1.0] * len(repeat_map), n_layers, room=room))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert width < room + 100
    assert height < 540
    for group in stretches(svg):
        for left, top, right, bottom in cells(group):
            assert 0 < left < right <= width
            assert 0 < top < bottom <= height
    for path in dashes(svg):
        ends = re.findall(r"[MLH]([\d.]+)", path)
        assert all(0 < float(x) < width for x in ends)
    told = [tuple(map(int, re.findall(r"\d+", (note or "").partition(":")[0]))) for note in notes(svg)]
    assert [visit for stretch in told for visit in range(stretch[0], stretch[-1] + 1)] == list(range(len(repeat_map)))


@pytest.mark.parametrize("repeat_map", MAPS.values(), ids=MAPS)
def test_texts_do_not_run_into_one_another(repeat_map: list[int]) -> None:
    svg = drawn(repeat_map, max(repeat_map) + 1, [1.0 if i % 3 else 0.25 for i in range(len(repeat_map))])
    boxes = []
    for text in svg.iter(f"{SVG}text"):
        wide = 5.5 * len(text.text or "") * (1.25 if "font-weight" in text.attrib else 1)
        left = float(text.attrib["x"]) - {"middle": wide / 2, "end": wide}.get(text.attrib.get("text-anchor", ""), 0)
        boxes.append((left, float(text.attrib["y"]), left + wide, text.text))
    for (left, y, right, said), (other_left, other_y, other_right, other) in combinations(boxes, 2):
        assert abs(y - other_y) >= 10 or right <= other_left or other_right <= left, (said, other)


def test_layers_run_left_to_right_and_each_sweep_is_a_row_below_the_last() -> None:
    svg = drawn([0, 1, 2, 1, 2, 3], 4)
    assert notes(svg) == ["visits 0 … 2: layers 0 … 2", "visits 3 … 4: layers 1 … 2 again", "visit 5: layer 3"]
    first, again, last = map(cells, stretches(svg))
    assert first[0][0] < first[1][0] < first[2][0]
    assert [cell[0] for cell in again] == [cell[0] for cell in first[1:]]  # the same layer, the same place
    assert again[0][1] == last[0][1] > first[0][3]
    assert again[1][2] < last[0][0]
    assert texts(svg).count("visit 0") == texts(svg).count("visit 3") == 1


def test_svg_draws_a_dashed_line_at_each_seam_and_none_elsewhere() -> None:
    assert len(dashes(drawn([0, 1, 2, 1, 2, 4, 4], 5))) == 3 + 1  # seams: 2→1, 2→4, 4→4; and the key
    assert len(dashes(drawn([0, 1, 2, 3, 4], 5))) == 1
    assert len(dashes(drawn(list(range(80))[::-1], 80))) == 79 + 1


def test_svg_colours_tell_first_visits_from_repeats() -> None:
    fills = [group.attrib["fill"] for group in stretches(drawn([0, 1, 0, 1, 2], 3))]
    assert fills[0] == fills[2] != fills[1]


def test_svg_fills_a_visit_as_high_as_it_is_strong_and_tells_its_scale() -> None:
    svg = drawn(list(range(12)), 12, scales=[1.0] * 3 + [0.5] * 3 + [-0.25] * 3 + [1.5] * 3)
    high = [cells(group)[0][3] - cells(group)[0][1] for group in stretches(svg)]
    assert high == pytest.approx([high[0], high[0] / 2, high[0] / 4, high[0]], abs=0.15)
    told = ["visits 3 … 5: layers 3 … 5, scale 0.5", "visits 6 … 8: layers 6 … 8, scale -0.25"]
    assert notes(svg)[1:] == [*told, "visits 9 … 11: layers 9 … 11, scale 1.5"]
    assert [said for said in texts(svg) if said and "×" in said] == ["×0.5", "×−0.25", "×1.5"]


def test_a_scale_without_room_in_its_cell_stands_behind_it_where_the_row_ends() -> None:
    svg = drawn([0, 1, 2, 3, 2, 1, 3], 30, [1.0] * 4 + [0.05, 0.05, 1.0])
    assert texts(svg).count("×0.05") == 1  # of layer 2; behind layer 1 stands a dashed line


def test_of_very_many_sweeps_the_first_are_drawn_and_the_others_counted() -> None:
    svg = drawn([0, 0] * 5000, 1)
    assert len(stretches(svg)) == 120
    assert "… and 9880 more sweeps, 9880 visits" in texts(svg)
    assert len(ET.tostring(svg)) < 100_000


@pytest.mark.parametrize(
    ("repeat_map", "rows"),
    [
        ([0], [[(0, 1, False)]]),
        ([0, 1, 2], [[(0, 3, False)]]),
        ([1, 1], [[(1, 2, False)], [(1, 2, True)]]),
        ([0, 3, 1, 2], [[(0, 1, False), (3, 4, False)], [(1, 3, False)]]),
        ([0, 1, 0, 1, 2], [[(0, 2, False)], [(0, 2, True), (2, 3, False)]]),
    ],
)
def test_a_sweep_ends_where_the_path_turns_back(repeat_map: list[int], rows: list[list[tuple[int, int, bool]]]) -> None:
    found = sweeps(repeat_map, [1.0] * len(repeat_map))
    assert [[(part.start, part.stop, part.again) for part in sweep] for sweep in found] == rows


def test_svg_title_is_text_whatever_it_holds() -> None:
    title = "</svg><script>alert('&\"')</script>"
    svg = drawn([0, 1], 2, title=title)
    assert title in texts(svg)
    assert not list(svg.iter(f"{SVG}script"))


def test_the_words_alone_can_be_read_as_a_notebook_that_is_not_trusted_shows_them() -> None:
    words = re.sub(r"<[^>]*>", "", svg_picture([0, 1, 2, 1, 2, 3], [1, 1, 1, 0.5, 0.5, 1], 4, "0:3, 1:3*0.5, 3"))
    assert " ".join(words.split()).startswith(
        "0:3, 1:3*0.5, 3 layer 0 1 2 3 visit 0 visits 0 … 2: layers 0 … 2 visit 3 "
    )


def test_svg_without_a_title_leaves_out_the_key_and_takes_the_room_it_is_given() -> None:
    with_title, bare = drawn([0, 1] * 40, 2), ET.fromstring(svg_picture([0, 1] * 40, [1.0] * 80, 2, room=200))
    assert "first visit" in texts(with_title)
    assert "first visit" not in texts(bare)
    assert 200 < float(bare.attrib["width"]) < 300
    assert float(bare.attrib["height"]) < float(with_title.attrib["height"])
