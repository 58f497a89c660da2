"""Write a recipe as an ordinary checkpoint, proved before it is written, or as a folder for the Hub."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.checkpoint.export_stacked import check_exportable, check_target, export, write_hub_folder

__all__ = ["check_exportable", "check_target", "export", "write_hub_folder"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, "export_stacked"))
