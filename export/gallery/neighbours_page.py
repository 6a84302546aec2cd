"""Queries and their nearest images as one HTML page: no script, nothing fetched, light and dark."""

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from export.embeddings import Place
from export.gallery.gallery import hash_text
from export.gallery.sprites import SMALL, Thumbnail, encode_data_uri
from export.neighbours import Answer, Search
from stdac.files import atomic_write, sweep_temporary
from stdac.pictures.thumbnails import Key
from stdac.words import count_noun

SIDE = 96
MOST_PICTURES = 3000  # with them the page has a few MB


def write_page(path: Path, search: Search, workers: int | None = None) -> int:
    """Write the page; returns how many queries it shows: as many of the first as there is room for. An image that
    cannot be read any more is a hatched tile."""
    each = 1 + max(len(answer.neighbours) for answer in search.answers)
    shown = search.answers[: max(1, MOST_PICTURES // each)]
    wanted = {place[:2] for answer in shown for place in _list_places(answer)}
    pictures = {key: _make_image(pixels) for key, pixels in search.read_pictures(wanted, SIDE, workers)}
    folder = files("export.gallery")
    style = (folder / "neighbours.css").read_text("utf-8")
    policy = f"default-src 'none'; img-src data:; style-src {hash_text(style)}; base-uri 'none'; form-action 'none'"
    parts = {
        "policy": policy,
        "style": style,
        "about": escape(_describe(search, len(shown))),
        "answers": "\n".join(_make_article(answer, pictures) for answer in shown),
    }
    template = (folder / "neighbours.html").read_text("utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda hole: parts[hole[1]], template)
    sweep_temporary(path)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return len(shown)


def _list_places(answer: Answer) -> list[Place]:
    """The query, then its neighbours."""
    return [answer.query, *(place for place, _ in answer.neighbours)]


def _describe(search: Search, shown: int) -> str:
    """What the page shows, in a sentence or two."""
    queries = count_noun(len(search.answers), "query", "queries")
    first = f", of which the first {shown:,} are shown" if shown < len(search.answers) else ""
    return (
        f"{queries}{first}, each with the nearest of {count_noun(search.searched, 'image')}. The number is the "
        f"distance of the embeddings, of {count_noun(search.embedding, 'value')}, that {search.model} gives them."
    )


def _make_article(answer: Answer, pictures: Mapping[Key, str]) -> str:
    """A query and its neighbours."""
    asked = _make_figure(answer.query, "query", pictures, "asked")
    rest = [_make_figure(place, f"{distance:.3f}", pictures, "") for place, distance in answer.neighbours]
    listed = "".join(f"<li>{figure}</li>" for figure in rest)
    return f"<article>{asked}<ol>{listed}</ol></article>"


def _make_figure(place: Place, what: str, pictures: Mapping[Key, str], kind: str) -> str:
    """A picture with a line and its name below it; the whole name is its title."""
    whole = place.source if place.member is None else f"{place.source}, {place.member}"
    short = place.member or place.source
    short = (
        short.rsplit("/", 1)[-1] if place.member or not place.number else f"{short.rsplit('/', 1)[-1]} {place.number}"
    )
    picture = pictures.get((place.source, place.number), '<span class="picture missing"></span>')
    title = escape(f"{whole}, {place.number}" if place.number and not place.member else whole)
    caption = f"<figcaption><b>{what}</b>{escape(short)}</figcaption>"
    picture = picture.replace(ALT, f'alt="{title}"')
    return f'<figure class="{kind}" title="{title}">{picture}{caption}</figure>'


ALT = 'alt=""'


def _make_image(pixels: Thumbnail) -> str:
    """A thumbnail as an element, still without its text."""
    small = max(pixels.shape[:2]) <= SMALL
    uri = encode_data_uri(Image.fromarray(pixels), small)
    return f'<img class="picture{" small" if small else ""}" src="{uri}" {ALT}>'
