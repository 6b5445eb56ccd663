"""The site, by Sphinx: `make site`."""

from fgclip_doctor import __version__

project = "fgclip-doctor"
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"fgclip-doctor {__version__}"
html_copy_source = False
html_show_copyright = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"  # commands and what they print; a block of code names its language
