"""stdac: one trial, and what becomes of its model. Heavy imports live in the commands that need them."""

import click

from cluster_jobs.commands.backbone import backbone_command
from cluster_jobs.commands.show import show_command
from cluster_jobs.commands.sort import sort_command
from cluster_jobs.commands.suggest_k import suggest_k_command
from cluster_jobs.commands.train import train_command
from export.cli import cluster_command, export_command
from export.neighbours_cli import neighbours_command
from export.web.page import page_command
from stdac.command import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="stdac")
def main() -> None:
    """Deep image clustering: train one model, export it to ONNX, sort pictures with it.

    Grids of many trials are the business of stdac-grid.
    """


for command in (
    *(sort_command, train_command, suggest_k_command, show_command),
    *(export_command, cluster_command, neighbours_command, page_command, backbone_command),
):
    main.add_command(command)
