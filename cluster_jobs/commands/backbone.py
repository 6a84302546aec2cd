"""The command `stdac backbone`: networks that were trained on photographs, of which `features-kmeans` takes one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stdac.errors import StdacError
from stdac.words import escape_line

THREE = "Of red, green and blue, of pixels of 0 to 255: R,G,B."


@click.group("backbone")
def backbone_command() -> None:
    """Add, list and show backbones: pretrained networks for photographs."""


@backbone_command.command("add")
@click.argument("name")
@click.argument("spec")
@click.option(
    "--card", type=click.Path(path_type=Path), metavar="FILE.json", help="What is given by options, in a file."
)
@click.option("--size", type=int, help="Side of its images in pixels.")
@click.option("--mean", metavar="R,G,B", help=THREE)
@click.option("--std", metavar="R,G,B", help=THREE)
@click.option("--features", help="Name of the output, or of any node's, that is the features (N, D).")
@click.option("--map", "map_", help="Name of the last map (N, D, h, w), for pooling norm and cam.")
@click.option("--classifier", help="Name of the constant (classes, D) that classifies features, for pooling cam.")
@click.option("--background", type=click.Choice(["black", "white", "auto"]), help="What transparency is laid on.")
@click.option("--source", help="Where it comes from, in words.")
@click.option("--version", help="Its version.")
@click.option("--licence", help="Its licence.")
def add_command(name: str, spec: str, card: Path | None, mean: str | None, std: str | None, **options: Any) -> None:
    """Keep the network of SPEC under NAME.

    SPEC: FILE.onnx, of which options or a card say how it is used, or torchvision:MODEL[@WEIGHTS], which tells itself.
    """
    from stdac.add_backbone import add
    from stdac.command import require

    require("onnx", "onnxruntime")
    options["map"] = options.pop("map_")
    values = {} if card is None else read_values(card)
    values |= {key: value for key, value in options.items() if value is not None}
    values |= {key: read_three(key, text) for key, text in (("mean", mean), ("std", std)) if text is not None}
    kept, notes = add(name, spec, values)
    for note in notes:
        click.echo(note, err=True)
    click.echo(f"{name}  {kept.id}  {kept.size}x{kept.size}  {escape_line(kept.source)}")


@backbone_command.command("list")
def list_command() -> None:
    """Print the backbones that there are: name, id, size, source."""
    from stdac.backbones import list_cards

    cards = list_cards()
    wide = max(map(len, cards))
    for name, card in cards.items():
        click.echo(f"{name:<{wide}}  {card.id}  {card.size}x{card.size}  {escape_line(card.source)}")


@backbone_command.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Print the card of the backbone NAME, which may be an id."""
    from stdac.backbones import find_card

    found, card = find_card(name)
    for key, value in {"name": found, "id": card.id, **asdict(card)}.items():
        click.echo(f"{key:<10}  {escape_line(value)}")


def read_values(path: Path) -> dict[str, Any]:
    """A card's values from JSON. Raises StdacError for what is none."""
    import json

    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StdacError(f"cannot read the card {path} ({error}): expected JSON") from error
    if not isinstance(values, dict):
        raise StdacError(
            f"the card {path} is no JSON object: expected names and values, as stdac backbone show has them"
        )
    return values


def read_three(name: str, text: str) -> list[float]:
    """Three numbers, separated by commas. Raises StdacError for others."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise StdacError(f"got --{name} {text}, expected three numbers, as in --{name} 127,127,127") from error
