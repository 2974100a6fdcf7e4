"""What all pictures look like."""

from __future__ import annotations

from PIL import ImageFont

PAPER, INK, QUIET = (255, 255, 255), (30, 30, 30), (120, 120, 120)
FONT_SIZE = 14
GAP = 4
MARGIN = 12


def font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """For all labels."""
    return ImageFont.load_default(FONT_SIZE)
