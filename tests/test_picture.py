"""Pictures of a map: one line of text, or an SVG."""

import xml.etree.ElementTree as ET

import pytest

from david.picture import svg_picture, text_picture

SVG = "{http://www.w3.org/2000/svg}"


def drawn(
    repeat_map: list[int], n_layers: int, scales: list[float] | None = None, title: str = "a title"
) -> ET.Element:
    return ET.fromstring(svg_picture(repeat_map, scales or [1.0] * len(repeat_map), n_layers, title))


def visits_of(svg: ET.Element) -> list[ET.Element]:
    return [rect for rect in svg.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


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


@pytest.mark.parametrize("visits", [1, 12, 120])
def test_svg_has_one_titled_rectangle_a_visit_inside_its_frame(visits: int) -> None:
    n_layers = max(1, visits // 2)
    svg = drawn([visit % n_layers for visit in range(visits)], n_layers)
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    rectangles = visits_of(svg)
    assert [rect.findtext(f"{SVG}title") for rect in rectangles] == [
        f"visit {visit}: layer {visit % n_layers}" for visit in range(visits)
    ]
    for rect in rectangles:
        assert 0 <= float(rect.attrib["x"]) <= float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert 0 <= float(rect.attrib["y"]) <= float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_svg_runs_left_to_right_and_deeper_is_higher() -> None:
    rectangles = visits_of(drawn([0, 1, 2, 1, 3], 4))
    x, y = ([float(rect.attrib[axis]) for rect in rectangles] for axis in "xy")
    assert x == sorted(x)
    assert len(set(x)) == 5
    assert y[0] > y[1] > y[2] > y[4]
    assert y[3] == y[1]


def test_svg_draws_a_dashed_line_at_each_seam() -> None:
    lines = list(drawn([0, 1, 2, 1, 2, 4, 4], 5).iter(f"{SVG}line"))  # seams: 2→1, 2→4, 4→4
    assert len(lines) == 3
    assert all("stroke-dasharray" in line.attrib for line in lines)


def test_svg_colours_tell_first_visits_from_repeats() -> None:
    colours = [rect.attrib["fill"] for rect in visits_of(drawn([0, 1, 0, 1, 2], 3))]
    assert colours[0] == colours[1] == colours[4] != colours[2] == colours[3]


def test_svg_shows_weaker_scales_paler_and_names_them() -> None:
    rectangles = visits_of(drawn([0, 1, 2], 3, scales=[1.0, 0.5, 0.25]))
    opacity = [float(rect.attrib["fill-opacity"]) for rect in rectangles]
    assert 1 == opacity[0] > opacity[1] > opacity[2] > 0
    assert [rect.findtext(f"{SVG}title") for rect in rectangles][1:] == [
        "visit 1: layer 1, scale 0.5",
        "visit 2: layer 2, scale 0.25",
    ]


def test_svg_title_is_text_whatever_it_holds() -> None:
    title = "</svg><script>alert('&\"')</script>"
    svg = drawn([0, 1], 2, title=title)
    assert title in [text.text for text in svg.iter(f"{SVG}text")]
    assert not list(svg.iter(f"{SVG}script"))


def test_svg_without_a_title_leaves_out_the_key_and_takes_the_room_it_is_given() -> None:
    with_title, bare = drawn([0, 1] * 40, 2), ET.fromstring(svg_picture([0, 1] * 40, [1.0] * 80, 2, room=200))
    assert "first visit" in ET.tostring(with_title, encoding="unicode")
    assert "first visit" not in ET.tostring(bare, encoding="unicode").replace("<title>", "")
    width, height = map(float, bare.attrib["viewBox"].split()[2:])
    last = visits_of(bare)[-1]
    assert 200 < float(last.attrib["x"]) + float(last.attrib["width"]) < width < 260
    assert height < float(with_title.attrib["height"])
