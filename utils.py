"""Names that people import from here; they are at home in `capsnet.pictures` and others."""

# ruff: noqa: F401
from capsnet.errors import first_line, printable
from capsnet.files import whole_file
from capsnet.pictures import (
    combine_images,
    plot_confusion,
    plot_dimensions,
    plot_log,
    plot_mistakes,
    plot_predictions,
    save_image,
)
from capsnet.routes import plot_routing
from capsnet.strokes import STROKES, measure_strokes
