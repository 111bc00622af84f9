"""The frame of every page: one template, one style, one script, charts and tables; what a page says is elsewhere.

Start with `page.render_page`. A page is one HTML file that loads nothing: it works offline, in a mail and as an
artifact of MLflow. Every room above may import this one.
"""
