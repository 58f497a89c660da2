"""Write a recipe as an ordinary checkpoint, proved before it is written, or as a folder for the Hub.

The main entry points are `export.export` and `export.write_hub_folder`.
"""
