"""A recipe as an ordinary checkpoint or a folder for the Hub, proved before it is written."""
