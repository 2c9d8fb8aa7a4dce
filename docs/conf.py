"""How Sphinx makes the site of these pages: ``make docs`` writes it to ``build/site``."""

from lorascope import __version__

project = "Lorascope"
version = release = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
# Pages are written for readers of the repository too, where a heading's address is made like this.
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "Lorascope"
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp"
nitpicky = True
